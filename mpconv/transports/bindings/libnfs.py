"""libnfs 4, 5 and 6 or later. The version is told by symbols: sonames differ between builds.

Version 6 changed the argument order of pread and pwrite and reads into the caller's buffer.
"""

from __future__ import annotations

from typing import Any

import cffi

from mpconv.transports.bindings import load

ffi = cffi.FFI()
ffi.cdef("""
struct nfs_context; struct nfsfh;
struct nfs_url { char *server; char *path; char *file; };
struct nfs_stat_64 {
    uint64_t nfs_dev; uint64_t nfs_ino; uint64_t nfs_mode; uint64_t nfs_nlink; uint64_t nfs_uid;
    uint64_t nfs_gid; uint64_t nfs_rdev; uint64_t nfs_size; uint64_t nfs_blksize; uint64_t nfs_blocks;
    uint64_t nfs_atime; uint64_t nfs_mtime; uint64_t nfs_ctime; uint64_t nfs_atime_nsec;
    uint64_t nfs_mtime_nsec; uint64_t nfs_ctime_nsec; uint64_t nfs_used; };
typedef void (*nfs_cb)(int, struct nfs_context *, void *, void *);
struct nfs_context *nfs_init_context(void);
void nfs_destroy_context(struct nfs_context *);
struct nfs_url *nfs_parse_url_full(struct nfs_context *, const char *);
void nfs_destroy_url(struct nfs_url *);
char *nfs_get_error(struct nfs_context *);
void nfs_set_autoreconnect(struct nfs_context *, int);
void nfs_set_timeout(struct nfs_context *, int);
int nfs_mount(struct nfs_context *, const char *, const char *);
int nfs_open(struct nfs_context *, const char *, int, struct nfsfh **);
int nfs_creat(struct nfs_context *, const char *, int, struct nfsfh **);
int nfs_close(struct nfs_context *, struct nfsfh *);
int nfs_ftruncate(struct nfs_context *, struct nfsfh *, uint64_t);
int nfs_fstat64(struct nfs_context *, struct nfsfh *, struct nfs_stat_64 *);
uint64_t nfs_get_readmax(struct nfs_context *);
uint64_t nfs_get_writemax(struct nfs_context *);
int nfs_get_fd(struct nfs_context *);
int nfs_which_events(struct nfs_context *);
int nfs_service(struct nfs_context *, int);
int nfs_fsync_async(struct nfs_context *, struct nfsfh *, nfs_cb, void *);
int nfs_set_retrans(struct nfs_context *, int);
int nfs_pread_async(struct nfs_context *, struct nfsfh *, uint64_t, uint64_t, nfs_cb, void *);
int nfs_pwrite_async(struct nfs_context *, struct nfsfh *, uint64_t, uint64_t, const void *, nfs_cb, void *);
""")

_PREAD_6 = "int(*)(struct nfs_context *, struct nfsfh *, void *, size_t, uint64_t, nfs_cb, void *)"
_PWRITE_6 = "int(*)(struct nfs_context *, struct nfsfh *, const void *, size_t, uint64_t, nfs_cb, void *)"


class Library:
    """The loaded library; `lib` has the calls that are the same in every version."""

    def __init__(self) -> None:
        names = [f"libnfs.so.{number}" for number in (13, 14, 15, 16, 17, 18)] + ["libnfs.so"]
        self.lib: Any = load(ffi, names, "libnfs", "libnfs13")
        self.reads_in_place = hasattr(self.lib, "nfs_set_retrans")
        if self.reads_in_place:
            self._pread = ffi.cast(_PREAD_6, ffi.addressof(self.lib, "nfs_pread_async"))
            self._pwrite = ffi.cast(_PWRITE_6, ffi.addressof(self.lib, "nfs_pwrite_async"))

    def pread(self, nfs: Any, fh: Any, offset: int, buffer: Any, length: int, callback: Any, tag: Any) -> int:
        """Start a read; versions before 6 ignore `buffer` and hand the bytes to the callback."""
        if self.reads_in_place:
            return int(self._pread(nfs, fh, buffer, length, offset, callback, tag))
        return int(self.lib.nfs_pread_async(nfs, fh, offset, length, callback, tag))

    def pwrite(self, nfs: Any, fh: Any, offset: int, buffer: Any, length: int, callback: Any, tag: Any) -> int:
        """Start a write."""
        if self.reads_in_place:
            return int(self._pwrite(nfs, fh, buffer, length, offset, callback, tag))
        return int(self.lib.nfs_pwrite_async(nfs, fh, offset, length, buffer, callback, tag))
