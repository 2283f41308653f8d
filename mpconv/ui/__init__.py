"""What people see while a copy runs."""
