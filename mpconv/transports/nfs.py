"""NFS by libnfs, in user space: many requests in flight on one connection.

What always holds: automatic reconnect is off (libnfs before 5.0.3 hands out wrong bytes after one), so a lost
connection fails every request that is under way, at once; and every answer's count is compared with what was
asked for.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from functools import partial
from typing import Any

from mpconv.errors import Fatal, MpconvError, NoSuchImage, Retryable
from mpconv.transports.base import CLOSED, Access, Buffer, Limits, Transport, cannot_create, cannot_open
from mpconv.transports.bindings.libnfs import Library, ffi
from mpconv.transports.blocking import beside
from mpconv.transports.pump import Pump
from mpconv.transports.reach import why_unreachable
from mpconv.transports.requests import Batch, Requests
from mpconv.units import MiB

_CONNECT_SECONDS = 10.0
_REQUEST_MS = 60_000
_PIECE = MiB
_FATAL = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EDQUOT, errno.EFBIG}
_PORTMAPPER = 111
_URL = re.compile(
    r"nfs://(?P<host>(?:[^/@?]*@)?(?:\[[^\]/]*\]|[^/:?]*))(?::(?P<port>\d*))?(?P<path>/[^?]*)(?:\?(?P<query>.*))?", re.I
)
_URL_PARAMETERS = set(
    [
        "version",
        "uid",
        "gid",
        "nfsport",
        "mountport",
        "if",
        "tcp-syncnt",
        "debug",
        "sec",
        "auto-traverse-mounts",
        "dircache",
    ]
)

_PRIVILEGED = "run as root, or export with 'insecure'"


class NfsTransport(Transport):
    """One mounted export and one open file on it."""

    def __init__(self, name: str, session: _Session) -> None:
        self.name = name
        self.size = session.size
        self.identity = ("nfs", session.address, session.device, session.inode)
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
        self._awaited = 0
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
        self._requests.fail_all(Retryable(self._lost_why))

    async def _end(self, batch: Batch, operation: str, offset: int | None) -> None:
        """Wait for all of it. A lost connection knows no offset: here it gets one."""
        try:
            await batch.future
        except Retryable as error:
            if self._lost_why is None:
                raise
            raise self.error(
                Retryable, operation, offset if error.offset is None else error.offset, self._lost_why
            ) from error

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._lost_why is not None:
            raise self.error(Retryable, operation, offset, self._lost_why)
        self.check_bounds(operation, offset or 0, length)

    def _fail(self, operation: str, offset: int | None, status: int) -> MpconvError:
        kind = Fatal if -status in _FATAL else Retryable
        why = "the server did not answer in time" if status == -errno.EINTR else os.strerror(-status)
        return self.error(kind, operation, offset, why)

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))
        if not buffer:
            return
        step = self.limits.largest_read
        batch = Batch()
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            target = ffi.from_buffer(piece, require_writable=True)
            at = offset + start

            def finish(
                status: int, data: Any, at: int = at, target: Any = target, want: int = len(piece)
            ) -> MpconvError | None:
                self._awaited -= want
                self._expect()
                if status < 0:
                    return self._fail("reading", at, status)
                if status != want:
                    return self.error(Fatal, "reading", at + status, _short_read(status, want))
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
        self._awaited += len(buffer)
        self._expect()
        self._pump.kick()
        await self._end(batch, "reading", offset)

    def _expect(self) -> None:
        """All that is awaited but for one answer, which may be nearly here already."""
        self._pump.expect(self._awaited - self.limits.largest_read)

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))
        if not buffer:
            return
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
        await self._end(batch, "writing", offset)

    async def flush(self) -> None:
        self._check("flushing", None, 0)
        batch = Batch()

        def finish(status: int, data: Any) -> MpconvError | None:
            return None if status >= 0 else self._fail("flushing", None, status)

        tag = self._tag(batch, finish, None)
        started = self._library.lib.nfs_fsync_async(self._nfs, self._fh, self._on_answer, tag)
        self._started(batch, tag, started, "flushing", None)
        self._pump.kick()
        await self._end(batch, "flushing", None)

    def _tag(self, batch: Batch, finish: Any, keep: Any) -> Any:
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
        self._lost_why = CLOSED
        nfs, self._nfs = self._nfs, None
        self._library.lib.nfs_destroy_context(nfs)
        self._requests.fail_all(Retryable(self._lost_why))


class _Session:
    """A context, mounted and with its file open, made by blocking calls (the descriptor changes while they run)."""

    def __init__(self, url: str) -> None:
        self.library = Library()
        match = _URL.fullmatch(url)
        if match is None or not match["host"]:
            raise cannot_open(url, "not of the form nfs://host[:port]/export/file[?parameter=value&...]")
        query = match["query"] or ""
        self.parameters = dict(part.partition("=")[::2] for part in query.split("&") if part)
        for parameter in self.parameters:
            if parameter not in _URL_PARAMETERS:
                raise cannot_open(url, f"unknown URL parameter '{parameter}' (a '?' in a file's name is written %3F)")
        if match["port"] and "nfsport" not in self.parameters:
            self.parameters["nfsport"] = match["port"]
        query = "&".join(f"{name}={value}" for name, value in self.parameters.items())
        self.url = f"nfs://{match['host']}{match['path']}" + (f"?{query}" if query else "")
        self.name = url
        self.created = False
        self.nfs = self.library.lib.nfs_init_context()

    def fail(self, status: int) -> Fatal:
        why = _short(_text(self.library.lib.nfs_get_error(self.nfs)), status)
        return cannot_open(self.name, why, NoSuchImage if status == -errno.ENOENT else Fatal)

    def not_mounted(self, status: int, server: str, path: str) -> Fatal:
        """What is wrong with the server, its ports or its export, in words that tell what to do."""
        text = _text(self.library.lib.nfs_get_error(self.nfs))
        if status == -errno.EACCES:
            why = f"Permission denied: no export for this host with a directory '{path}'"
            return cannot_open(self.name, f"{why}, or only for ports below 1024 ({_PRIVILEGED})")
        if status == -errno.ENOENT:
            return cannot_open(self.name, f"No such file or directory: '{path}' on the server")
        if "timed out" in text:
            return cannot_open(self.name, "the server does not answer")
        named = [self.parameters.get(name, "") for name in ("mountport", "nfsport")]
        ports = [int(port) for port in named if port.isdecimal()]
        why = why_unreachable(server, ports if len(ports) == len(named) else [_PORTMAPPER, *ports]) or ""
        if not why and "(null)" in text:
            why = f"the server refused the request: it may serve only ports below 1024 ({_PRIVILEGED})"
        return cannot_open(self.name, why or _short(text, status))

    def open(self, access: Access, create_size: int | None) -> None:
        """Mount and open. What it raises leaves nothing behind."""
        try:
            self._open(access, create_size)
        except BaseException:
            self.library.lib.nfs_destroy_context(self.nfs)
            raise

    def _open(self, access: Access, create_size: int | None) -> None:
        lib = self.library.lib
        parsed = lib.nfs_parse_url_full(self.nfs, self.url.encode())
        if parsed == ffi.NULL:
            raise cannot_open(self.name, _text(lib.nfs_get_error(self.nfs)) or "not an NFS URL")
        server, path, file = (_text(x) for x in (parsed.server, parsed.path, parsed.file))
        lib.nfs_destroy_url(parsed)
        server = server.removeprefix("[").removesuffix("]")
        lib.nfs_set_autoreconnect(self.nfs, 0)
        lib.nfs_set_timeout(self.nfs, int(_CONNECT_SECONDS * 1000))
        status = lib.nfs_mount(self.nfs, server.encode(), path.encode())
        if status != 0:
            raise self.not_mounted(status, server, path)
        handle = ffi.new("struct nfsfh **")
        if not file.strip("/"):
            raise cannot_open(self.name, "Is a directory")
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
                raise self.fail(status)
        self.fh = handle[0]
        info = ffi.new("struct nfs_stat_64 *")
        status = lib.nfs_fstat64(self.nfs, self.fh, info)
        if status != 0:
            raise self.fail(status)
        if info.nfs_mode & 0o170000 == 0o040000:
            raise cannot_open(self.name, "Is a directory")
        self.size, self.device, self.inode = int(info.nfs_size), int(info.nfs_dev), int(info.nfs_ino)
        self.largest_read = int(lib.nfs_get_readmax(self.nfs)) or _PIECE
        self.largest_write = int(lib.nfs_get_writemax(self.nfs)) or _PIECE
        with socket.socket(fileno=os.dup(lib.nfs_get_fd(self.nfs))) as connection:
            self.address = connection.getpeername()[0]
        lib.nfs_set_timeout(self.nfs, _REQUEST_MS)


def _text(pointer: Any) -> str:
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode(errors="replace")


def _short_read(got: int, wanted: int) -> str:
    return f"the server returned {got} of {wanted} bytes: the file may have shrunk"


def _short(text: str, status: int) -> str:
    """One clause: the system's word for the status, with the library's where it says more."""
    word = os.strerror(-status) if status < 0 else ""
    if -status in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EISDIR):
        return word
    text = " ".join(text.split())
    return text or word or "unknown error"


async def connect(url: str, access: Access, *, create_size: int | None = None) -> NfsTransport:
    """Mount the directory of `url` and open its last component; `create_size` makes or replaces the file."""
    session = _Session(url)
    try:
        await beside(lambda: session.open(access, create_size), seconds=_CONNECT_SECONDS + 5)
    except TimeoutError as error:
        raise cannot_open(url, "the server does not answer") from error
    return NfsTransport(url, session)
