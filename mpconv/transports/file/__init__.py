"""Local files and block devices."""
