"""What others made and somebody changed: images as targets, with qemu-img as the judge."""
