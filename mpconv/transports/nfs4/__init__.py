"""A map of the holes of a file on an NFS server, by NFSv4.2 SEEK over a connection of its own.

No libnfs speaks NFSv4.2, and NFSv3 shows no holes. This asks for metadata alone; the data travels elsewhere.
"""

from mpconv.transports.nfs4.hole_map import FileFacts, HoleMap, connect

__all__ = ["FileFacts", "HoleMap", "connect"]
