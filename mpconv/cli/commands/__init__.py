"""A module for each command: its options, and the job that it runs. The jobs do the work."""
