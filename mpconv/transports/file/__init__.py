"""Local files and block devices, with QEMU's locks. It knows nothing of image formats."""
