"""Progress in a terminal: qemu-img's text, a live bar, a table of a fan-out, JSON lines."""
