"""What commands print of running and finished jobs."""
