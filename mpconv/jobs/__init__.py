"""What can be done with images: each job opens what it needs, runs the coordinator and finishes."""
