"""What the bytes of a store mean: an image is a format over one transport or several.

It also decides which other files an image may open. It knows nothing of jobs, leases and workers.
"""
