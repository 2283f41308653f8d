"""What the coordinator and the workers say to each other; see PROTOCOL.md."""
