"""What of a copy is done and durable, kept in a file, so that it can go on after its command has ended."""
