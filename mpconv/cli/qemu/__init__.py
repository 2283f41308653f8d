"""qemu-img's language: its option lists, its words for what it refuses."""
