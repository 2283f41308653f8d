"""mpconv: copies disk images between NFS, iSCSI and local storage with many processes."""

__version__ = "0.1.0"
