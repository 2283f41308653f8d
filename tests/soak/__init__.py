"""Copies with random faults, judged by qemu-img: the bytes are right, or the exit code says they are not."""
