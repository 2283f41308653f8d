"""What may be asked for: values, what they are when nobody says, and what is refused. No I/O."""
