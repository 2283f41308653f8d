"""Reads an image's tables, counts their references, and compares these with the refcounts. It repairs nothing."""
