"""What commands print about running and finished jobs. Bars and tables for terminals are in mpconv/ui/terminal."""
