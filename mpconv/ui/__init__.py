"""What people see while a copy runs: in a terminal, or in a browser. It changes nothing about the copy."""
