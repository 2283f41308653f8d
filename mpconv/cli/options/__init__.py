"""Click options that several commands share. What their values mean for a copy stands in mpconv/options."""
