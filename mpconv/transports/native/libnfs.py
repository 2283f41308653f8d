"""libnfs 4, 5 and 6 or later. The version is told by symbols: sonames differ between builds.

Version 6 changed the argument order of pread and pwrite and reads into the caller's buffer; its RPC calls have other
names and tell by a null pointer that they were not queued.
"""

from __future__ import annotations

from typing import Any

from mpconv.transports.native import _libnfs as compiled
from mpconv.transports.native import has, load

ffi: Any = compiled.ffi


_PREAD_6 = "int(*)(struct nfs_context *, struct nfsfh *, void *, size_t, uint64_t, nfs_cb, void *)"
_PWRITE_6 = "int(*)(struct nfs_context *, struct nfsfh *, const void *, size_t, uint64_t, nfs_cb, void *)"


class Library:
    """The loaded library; `lib` has the calls that are the same in every version."""

    def __init__(self) -> None:
        names = [f"libnfs.so.{number}" for number in (13, 14, 15, 16, 17, 18)] + ["libnfs.so"]
        self.lib: Any = load(ffi, names, "libnfs", "libnfs13")
        # Before version 5 an NFSv4 request has room for 4 KiB, and a WRITE with more than that is never sent.
        self.writes_version_4 = has(ffi, self.lib, "nfs_set_readmax")
        self.reads_in_place = has(ffi, self.lib, "nfs_set_retrans")
        if self.reads_in_place:
            self._pread = ffi.cast(_PREAD_6, ffi.addressof(self.lib, "nfs_pread_async"))
            self._pwrite = ffi.cast(_PWRITE_6, ffi.addressof(self.lib, "nfs_pwrite_async"))
        self._has_tasks = has(ffi, self.lib, "rpc_nfs3_write_task")

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

    def rpc_write(self, rpc: Any, callback: Any, arguments: Any, tag: Any) -> int:
        """Start a WRITE of NFSv3: 0 when it was queued."""
        if self._has_tasks:
            return int(self.lib.rpc_nfs3_write_task(rpc, callback, arguments, tag) == ffi.NULL)
        return int(self.lib.rpc_nfs3_write_async(rpc, callback, arguments, tag))

    def rpc_commit(self, rpc: Any, callback: Any, arguments: Any, tag: Any) -> int:
        """Start a COMMIT of NFSv3: 0 when it was queued."""
        if self._has_tasks:
            return int(self.lib.rpc_nfs3_commit_task(rpc, callback, arguments, tag) == ffi.NULL)
        return int(self.lib.rpc_nfs3_commit_async(rpc, callback, arguments, tag))
