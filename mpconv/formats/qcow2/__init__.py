"""qcow2: what lies where in an image, and how one is read and written."""
