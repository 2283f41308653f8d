"""WRITE and COMMIT of one open file.

By NFSv3 they are RPC calls of our own through libnfs's connection: its `nfs_pwrite` and `nfs_fsync` pass over the write
verifier, so that what a server loses when it is started again is missing in the file and nobody knows. By NFSv4 there
is no such way, so the file is open with O_SYNC: every write is written down before it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from mpconv.model.errors import MpconvError, Retryable
from mpconv.transports.native.libnfs import Library, ffi
from mpconv.transports.nfs.status import meaning, refusal
from mpconv.transports.nfs.verifier import FILE_SYNC, UNSTABLE

Answered = Callable[[int, Any, Any], None]
"""Is called back by libnfs: status, result, the request's tag."""
_SUCCESS, _CANCELLED, _TIMED_OUT = 0, 2, 3


class Refused(Struct, frozen=True):
    """A request that was not done."""

    kind: type[MpconvError]
    why: str


class Taken(Struct, frozen=True):
    """So many bytes were. `verifier` and `stability`: as NFSv3 has them."""

    count: int
    stability: int = FILE_SYNC
    verifier: bytes = b""


class Writing:
    """By NFSv3. A request that is started, which 0 says, ends in a call of `answered`."""

    def __init__(self, library: Library, nfs: Any, fh: Any, answered: Answered) -> None:
        self._library = library
        self._rpc = library.lib.nfs_get_rpc_context(nfs)
        self._callback = ffi.callback("rpc_cb", lambda rpc, status, result, tag: answered(status, result, tag))
        handle = library.lib.nfs_get_fh(fh)
        self._write = ffi.new("struct WRITE3args *", {"stable": UNSTABLE})
        self._commit = ffi.new("struct COMMIT3args *")  # from byte 0, with a count of 0: all of the file
        for arguments in (self._write, self._commit):
            arguments.file.len, arguments.file.val = handle.len, handle.val

    def write(self, offset: int, data: Any, length: int, tag: Any) -> int:
        """`data` must stay until it is answered."""
        arguments = self._write
        arguments.offset, arguments.count = offset, length
        arguments.data.len, arguments.data.val = length, data
        return self._library.rpc_write(self._rpc, self._callback, arguments, tag)

    def commit(self, tag: Any) -> int:
        """Of all of the file."""
        return self._library.rpc_commit(self._rpc, self._callback, self._commit, tag)

    def taken(self, status: int, result: Any) -> Taken | Refused:
        """What the answer to a write says."""
        if status != _SUCCESS:
            return _unanswered(status, result)
        answer = ffi.cast("struct WRITE3res *", result)
        if answer.status:
            return Refused(*refusal(answer.status))
        return Taken(answer.ok.count, answer.ok.committed, bytes(ffi.buffer(answer.ok.verifier)))

    def committed(self, status: int, result: Any) -> Taken | Refused:
        """What the answer to a COMMIT says."""
        if status != _SUCCESS:
            return _unanswered(status, result)
        answer = ffi.cast("struct COMMIT3res *", result)
        if answer.status:
            return Refused(*refusal(answer.status))
        return Taken(0, UNSTABLE, bytes(ffi.buffer(answer.ok.verifier)))


class SyncWriting:
    """By NFSv4, of a file that is open with O_SYNC."""

    def __init__(self, library: Library, nfs: Any, fh: Any, answered: Answered) -> None:
        self._library = library
        self._nfs = nfs
        self._fh = fh
        self._callback = ffi.callback("nfs_cb", lambda status, nfs, result, tag: answered(status, result, tag))

    def write(self, offset: int, data: Any, length: int, tag: Any) -> int:
        """`data` must stay until it is answered."""
        return self._library.pwrite(self._nfs, self._fh, offset, data, length, self._callback, tag)

    def commit(self, tag: Any) -> int:
        """Of all of the file."""
        return int(self._library.lib.nfs_fsync_async(self._nfs, self._fh, self._callback, tag))

    def taken(self, status: int, result: Any) -> Taken | Refused:
        """What the answer to a write says."""
        if status < 0:
            return Refused(*meaning(status, error_of(self._library, self._nfs)))
        return Taken(status)

    committed = taken


def error_of(library: Library, nfs: Any) -> str:
    """What libnfs says of its last error."""
    text = library.lib.nfs_get_error(nfs)
    return "" if text == ffi.NULL else ffi.string(text).decode(errors="replace")


def _unanswered(status: int, result: Any) -> Refused:
    if status in (_CANCELLED, _TIMED_OUT):
        return Refused(Retryable, "the server did not answer in time")
    text = "" if result == ffi.NULL else ffi.string(ffi.cast("char *", result)).decode(errors="replace")
    return Refused(Retryable, " ".join(text.split()) or "the server did not accept the request")
