"""Many copies over one pool of workers (`mpconv fanout`)."""
