"""What is shown in a terminal while a job runs."""
