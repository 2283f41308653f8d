"""Whether an image's tables and refcounts are what they must be: read, counted, compared."""
