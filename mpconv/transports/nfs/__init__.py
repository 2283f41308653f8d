"""Files on NFS servers, by libnfs, in user space. It mounts nothing; holes and DEALLOCATE are in v42."""
