"""What runs in a worker process: it owns its storage connections and moves the bytes.

It writes only what a lease and its token allow. It keeps no account of the copy and never talks to another worker.
"""
