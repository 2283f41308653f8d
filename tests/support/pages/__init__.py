"""What is made from the commands: reference pages, man pages, shell completions. `scripts/pages` writes it."""
