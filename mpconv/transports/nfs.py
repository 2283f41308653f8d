"""NFS by libnfs, in user space: many requests in flight on one connection.

What always holds: automatic reconnect is off (libnfs before 5.0.3 hands out wrong bytes after one), so a lost
connection fails every request that is under way, at once; and every answer's count is compared with what was
asked for.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import Any

from mpconv.errors import Fatal, MpconvError, Retryable
from mpconv.transports.base import Access, Buffer, Limits, Transport, cannot_create, cannot_open
from mpconv.transports.bindings.libnfs import Library, ffi
from mpconv.transports.blocking import beside
from mpconv.transports.pump import Pump
from mpconv.transports.requests import Batch, Requests
from mpconv.units import MiB

_CONNECT_SECONDS = 20.0
_REQUEST_MS = 60_000
_PIECE = MiB
_FATAL = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EDQUOT, errno.EFBIG}
_REFUSED_URL_PARAMETERS = {"autoreconnect"}


class NfsTransport(Transport):
    """One mounted export and one open file on it."""

    def __init__(self, name: str, session: _Session) -> None:
        self.name = name
        self.size = session.size
        self.identity = ("nfs", session.server, session.device, session.inode)
        self.limits = Limits(
            largest_read=min(session.largest_read, _PIECE), largest_write=min(session.largest_write, _PIECE)
        )
        self.zero_initialised = session.created
        self._library = session.library
        self._nfs = session.nfs
        self._fh = session.fh
        self._requests = Requests()
        self._on_answer = ffi.callback("nfs_cb", self._answered)
        self._lost_why: str | None = None
        lib = self._library.lib
        self._pump = Pump(
            lib.nfs_get_fd(self._nfs),
            partial(lib.nfs_which_events, self._nfs),
            partial(lib.nfs_service, self._nfs),
            self._lost,
        )

    def _answered(self, status: int, nfs: Any, data: Any, tag: Any) -> None:
        self._requests.answered(int(ffi.cast("uintptr_t", tag)), status, data)

    def _lost(self) -> None:
        self._lost_why = "the connection to the server was lost"
        self._requests.fail_all(self.error(Retryable, "talking", None, self._lost_why))

    def _fail(self, operation: str, offset: int, status: int) -> MpconvError:
        kind = Fatal if -status in _FATAL else Retryable
        return self.error(kind, operation, offset, os.strerror(-status))

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        step = self.limits.largest_read
        batch = Batch()
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            target = ffi.from_buffer(piece, require_writable=True)
            at = offset + start

            def finish(
                status: int, data: Any, at: int = at, target: Any = target, want: int = len(piece)
            ) -> MpconvError | None:
                if status < 0:
                    return self._fail("reading", at, status)
                if status != want:
                    return self.error(Fatal, "reading", at + status, f"the server returned {status} of {want} bytes")
                if not self._library.reads_in_place:
                    ffi.memmove(target, data, want)
                return None

            tag = self._tag(batch, finish, target)
            self._started(
                batch,
                tag,
                self._library.pread(self._nfs, self._fh, at, target, len(piece), self._on_answer, tag),
                "reading",
                at,
            )
        self._pump.kick()
        await batch.future

    async def write(self, offset: int, buffer: Buffer) -> None:
        step = self.limits.largest_write
        batch = Batch()
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            source = ffi.from_buffer(piece)
            at = offset + start

            def finish(status: int, data: Any, at: int = at, want: int = len(piece)) -> MpconvError | None:
                if status < 0:
                    return self._fail("writing", at, status)
                if status != want:
                    return self.error(Fatal, "writing", at + status, f"the server took {status} of {want} bytes")
                return None

            tag = self._tag(batch, finish, source)
            self._started(
                batch,
                tag,
                self._library.pwrite(self._nfs, self._fh, at, source, len(piece), self._on_answer, tag),
                "writing",
                at,
            )
        self._pump.kick()
        await batch.future

    async def flush(self) -> None:
        batch = Batch()

        def finish(status: int, data: Any) -> MpconvError | None:
            return None if status >= 0 else self.error(Fatal, "flushing", None, os.strerror(-status))

        tag = self._tag(batch, finish, None)
        started = self._library.lib.nfs_fsync_async(self._nfs, self._fh, self._on_answer, tag)
        self._started(batch, tag, started, "flushing", None)
        self._pump.kick()
        await batch.future

    def _tag(self, batch: Batch, finish: Any, keep: Any) -> Any:
        if self._lost_why is not None:
            raise self.error(Retryable, "talking", None, self._lost_why)
        return ffi.cast("void *", self._requests.add(batch, finish, keep))

    def _started(self, batch: Batch, tag: Any, result: int, operation: str, offset: int | None) -> None:
        if result != 0:
            why = _text(self._library.lib.nfs_get_error(self._nfs)) or "libnfs refused the request"
            error = self.error(Retryable, operation, offset, why)
            self._requests.fail_one(int(ffi.cast("uintptr_t", tag)), error)

    async def close(self) -> None:
        if self._nfs is None:
            return
        self._pump.stop()
        self._lost_why = "the connection is closed"
        nfs, self._nfs = self._nfs, None
        self._library.lib.nfs_destroy_context(nfs)
        self._requests.fail_all(self.error(Retryable, "talking", None, self._lost_why))


class _Session:
    """A context, mounted and with its file open, made by blocking calls (the descriptor changes while they run)."""

    def __init__(self, url: str) -> None:
        self.library = Library()
        self.url = url
        self.name = url
        self.created = False
        self.nfs = self.library.lib.nfs_init_context()

    def fail(self, status: int, doing: str) -> Fatal:
        text = _text(self.library.lib.nfs_get_error(self.nfs))
        why = _short(text, status)
        if status in (-errno.EACCES, -errno.EPERM) and doing == "mount":
            why += "; the export may refuse ports over 1023: run as root, or export with 'insecure'"
        return cannot_open(self.name, why)

    def open(self, access: Access, create_size: int | None) -> None:
        lib = self.library.lib
        parsed = lib.nfs_parse_url_full(self.nfs, self.url.encode())
        if parsed == ffi.NULL:
            raise cannot_open(self.name, _text(lib.nfs_get_error(self.nfs)) or "not an NFS URL")
        server, path, file = (_text(x) for x in (parsed.server, parsed.path, parsed.file))
        lib.nfs_destroy_url(parsed)
        self.server = server
        lib.nfs_set_autoreconnect(self.nfs, 0)
        lib.nfs_set_timeout(self.nfs, int(_CONNECT_SECONDS * 1000))
        status = lib.nfs_mount(self.nfs, server.encode(), path.encode())
        if status != 0:
            raise self.fail(status, "mount")
        handle = ffi.new("struct nfsfh **")
        if create_size is not None:
            status = lib.nfs_creat(self.nfs, file.encode(), 0o644, handle)
            if status == 0:
                for size in (0, create_size):
                    status = status or lib.nfs_ftruncate(self.nfs, handle[0], size)
            if status != 0:
                raise cannot_create(self.name, _short(_text(lib.nfs_get_error(self.nfs)), status))
            self.created = True
        else:
            flags = os.O_RDONLY if access is Access.READ else os.O_RDWR
            status = lib.nfs_open(self.nfs, file.encode(), flags, handle)
            if status != 0:
                raise self.fail(status, "open")
        self.fh = handle[0]
        info = ffi.new("struct nfs_stat_64 *")
        status = lib.nfs_fstat64(self.nfs, self.fh, info)
        if status != 0:
            raise self.fail(status, "stat")
        if info.nfs_mode & 0o170000 == 0o040000:
            raise cannot_open(self.name, "Is a directory")
        self.size, self.device, self.inode = int(info.nfs_size), int(info.nfs_dev), int(info.nfs_ino)
        self.largest_read = int(lib.nfs_get_readmax(self.nfs)) or _PIECE
        self.largest_write = int(lib.nfs_get_writemax(self.nfs)) or _PIECE
        lib.nfs_set_timeout(self.nfs, _REQUEST_MS)


def _text(pointer: Any) -> str:
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode(errors="replace")


def _short(text: str, status: int) -> str:
    """One clause: the system's word for the status, with the library's where it says more."""
    word = os.strerror(-status) if status < 0 else ""
    if -status in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EISDIR):
        return word
    text = " ".join(text.split())
    return text or word or "unknown error"


async def connect(url: str, access: Access, *, create_size: int | None = None) -> NfsTransport:
    """Mount the directory of `url` and open its last component; `create_size` makes or replaces the file."""
    query = url.partition("?")[2]
    for parameter in query.split("&"):
        if parameter.partition("=")[0] in _REFUSED_URL_PARAMETERS:
            raise cannot_open(url, f"the URL parameter '{parameter.partition('=')[0]}' is not allowed")
    session = _Session(url)
    try:
        await beside(lambda: session.open(access, create_size), seconds=_CONNECT_SECONDS + 10)
    except TimeoutError as error:
        raise cannot_open(url, "the server does not answer") from error
    return NfsTransport(url, session)
