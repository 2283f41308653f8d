"""What a caller may ask for: values, their defaults, and what is refused. It parses no command line and does no I/O."""
