"""Files on NFS servers, by libnfs, in user space."""
