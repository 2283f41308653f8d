"""An NFS session: mounted, with one file open, made by libnfs's blocking calls.

The descriptor changes while they run, so nothing else may use the session until it is open. Every way to fail gets
its own words: libnfs says little more than that it failed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import socket
import time
from typing import Any

from msgspec import Struct

from mpconv.errors import Absent, Denied, Fatal, NoSuchImage, Retryable, Unreachable
from mpconv.transports.base import Access, cannot_create, cannot_open
from mpconv.transports.bindings.libnfs import Library, ffi
from mpconv.transports.nfs4 import FileFacts, Where
from mpconv.transports.nfs_status import meaning
from mpconv.transports.reach import why_unreachable
from mpconv.transports.requests import request_seconds
from mpconv.units import MiB

CONNECT_SECONDS = 10.0
PIECE = MiB
"""Bytes of one request at most: larger ones gain nothing and take the heap's memory."""
_PORTMAPPER = 111
_LONGEST_HANDLE = 128
"""Bytes, in NFSv4; 64 in NFSv3."""
_URL = re.compile(
    r"nfs://(?P<host>(?:[^/@?]*@)?(?:\[[^\]/]*\]|[^/:?]*))(?::(?P<port>\d*))?(?P<path>/[^?]*)(?:\?(?P<query>.*))?", re.I
)
_URL_PARAMETERS = frozenset(
    (
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
    )
)
_PRIVILEGED = "run as root, or export with 'insecure'"
_QUESTION_MARK = re.compile("%3f", re.IGNORECASE)
"""The one character that a URL's path cannot hold; libnfs 4 does not decode it."""


class Address(Struct, frozen=True):
    """A URL, taken apart. `host`: as it stands there; `path`: of the file, with its export."""

    host: str
    path: str
    parameters: dict[str, str]

    @property
    def url(self) -> str:
        """As libnfs takes it: a port is a parameter."""
        query = "&".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"nfs://{self.host}{self.path}" + (f"?{query}" if query else "")

    @property
    def server(self) -> str:
        """The host's name or address alone."""
        return self.host.rpartition("@")[2].removeprefix("[").removesuffix("]")

    @property
    def directory(self) -> str:
        """What is mounted."""
        return _QUESTION_MARK.sub("?", self.path).rpartition("/")[0] or "/"


def parse(url: str) -> Address:
    """Fatal when it is none."""
    match = _URL.fullmatch(url)
    if match is None or not match["host"]:
        raise cannot_open(url, "not of the form nfs://host[:port]/export/file[?parameter=value&...]")
    parameters = dict(part.partition("=")[::2] for part in (match["query"] or "").split("&") if part)
    for parameter in parameters:
        if parameter not in _URL_PARAMETERS:
            raise cannot_open(url, f"unknown URL parameter '{parameter}' (a '?' in a file's name is written %3F)")
    if match["port"] and "nfsport" not in parameters:
        parameters["nfsport"] = match["port"]
    return Address(match["host"], match["path"], parameters)


class Session:
    """A context of libnfs. `facts`: of a file that is only read, for the map of its holes."""

    def __init__(self, url: str) -> None:
        self.library = Library()
        address = parse(url)
        self.parameters, self.url = address.parameters, address.url
        self.name = url
        self.created = self.is_new = False
        self.nfs = self.library.lib.nfs_init_context()

    def fail(self, status: int) -> Fatal:
        text = text_of(self.library.lib.nfs_get_error(self.nfs))
        kind, _ = meaning(status, text)
        if status == -errno.ENOENT:
            return cannot_open(self.name, _short(text, status), NoSuchImage)
        if status in (-errno.EACCES, -errno.EPERM):
            return cannot_open(self.name, _short(text, status), Denied)
        passing = Unreachable if issubclass(kind, Retryable) else Fatal
        return cannot_open(self.name, _short(text, status), Absent if kind is Absent else passing)

    def not_mounted(self, status: int, server: str, path: str) -> Fatal:
        """What is wrong with the server, its ports or its export, in words that tell what to do."""
        text = text_of(self.library.lib.nfs_get_error(self.nfs))
        if status == -errno.EACCES:
            why = f"Permission denied: no export for this host with a directory '{path}'"
            return cannot_open(self.name, f"{why}, or only for ports below 1024 ({_PRIVILEGED})", Absent)
        if status == -errno.ENOENT:
            return cannot_open(self.name, f"No such file or directory: '{path}' on the server", Absent)
        if "Program is not available" in text:
            why = "is it up? Ports may be named: ?nfsport=N&mountport=N"
            return cannot_open(self.name, f"no NFS server is known to the portmapper of {server}: {why}", Unreachable)
        if "timed out" in text:
            return cannot_open(self.name, "the server does not answer", Unreachable)
        named = [self.parameters.get(name, "") for name in ("mountport", "nfsport")]
        ports = [int(port) for port in named if port.isdecimal()]
        why = why_unreachable(server, ports if len(ports) == len(named) else [_PORTMAPPER, *ports]) or ""
        if not why and "(null)" in text:
            why = f"the server refused the request: it may serve only ports below 1024 ({_PRIVILEGED})"
        return cannot_open(self.name, why or _short(text, status), Unreachable)

    def open(self, access: Access, create_size: int | None) -> None:
        """Mount and open. What it raises leaves nothing behind."""
        try:
            self._open(access, create_size)
        except BaseException:
            self.abandon()
            raise

    def directory(self) -> tuple[int | None, bool]:
        """Mount, and end: bytes of room that the server tells of, and whether files may be made in the directory."""
        lib = self.library.lib
        try:
            self._mount()
            room = ffi.new("struct nfs_statvfs_64 *")
            told = lib.nfs_statvfs64(self.nfs, b"/", room) == 0
            free = int(room.f_bavail) * int(room.f_frsize or room.f_bsize) if told else None
            return free, lib.nfs_access(self.nfs, b"/", os.W_OK) == 0
        finally:
            lib.nfs_destroy_context(self.nfs)

    def _mount(self) -> tuple[str, str]:
        """The directory that is mounted, and the file's name in it."""
        lib = self.library.lib
        parsed = lib.nfs_parse_url_full(self.nfs, self.url.encode())
        if parsed == ffi.NULL:
            raise cannot_open(self.name, text_of(lib.nfs_get_error(self.nfs)) or "not an NFS URL")
        server, path, file = (_QUESTION_MARK.sub("?", text_of(x)) for x in (parsed.server, parsed.path, parsed.file))
        lib.nfs_destroy_url(parsed)
        server = server.removeprefix("[").removesuffix("]")
        lib.nfs_set_autoreconnect(self.nfs, 0)
        lib.nfs_set_timeout(self.nfs, int(CONNECT_SECONDS * 1000))
        # libnfs names an NFSv4 client by process number and second: to the server another connection with the same name
        # is the same client after a reboot, and all that the first one has open ends (NFS4ERR_EXPIRED).
        lib.nfs4_set_client_name(self.nfs, f"mpconv {secrets.token_hex(16)}".encode())
        status = lib.nfs_mount(self.nfs, server.encode(), path.encode())
        if status != 0:
            raise self.not_mounted(status, server, path)
        return path, file

    def _open(self, access: Access, create_size: int | None) -> None:
        lib = self.library.lib
        if self.parameters.get("version") == "4" and not self.library.writes_version_4:
            why = "libnfs 4 cannot write by NFSv4: leave 'version=4' out, or install libnfs 5 or later"
            if create_size is not None:
                raise cannot_create(self.name, why)
            if access is Access.WRITE:
                raise cannot_open(self.name, why)
        path, file = self._mount()
        self.file = file
        handle = ffi.new("struct nfsfh **")
        if not file.strip("/"):
            raise cannot_open(self.name, "Is a directory")
        if create_size is not None:
            self._make(file.encode(), create_size, handle)
        else:
            flags = os.O_RDONLY if access is Access.READ else os.O_RDWR
            status = lib.nfs_open(self.nfs, file.encode(), flags, handle)
            if status != 0:
                raise self.fail(status)
        self.fh = handle[0]
        info = ffi.new("struct nfs_stat_64 *")
        started = time.monotonic()
        status = lib.nfs_fstat64(self.nfs, self.fh, info)
        self.round_trip = time.monotonic() - started
        if status != 0:
            raise self.fail(status)
        if info.nfs_mode & 0o170000 == 0o040000:
            raise cannot_open(self.name, "Is a directory")
        self.size, self.device, self.inode = int(info.nfs_size), int(info.nfs_dev), int(info.nfs_ino)
        self.largest_read = int(lib.nfs_get_readmax(self.nfs)) or PIECE
        self.largest_write = int(lib.nfs_get_writemax(self.nfs)) or PIECE
        with socket.socket(fileno=os.dup(lib.nfs_get_fd(self.nfs))) as connection:
            self.address, port = connection.getpeername()[:2]
        self.where = Where(
            self.address,
            port,
            f"{path}/{file}",
            self._own("uid", os.getuid()),
            self._own("gid", os.getgid()),
        )
        self.facts: FileFacts | None = None
        self.used = int(info.nfs_used)
        if access is Access.READ:
            self.facts = FileFacts(self.size, self.inode, int(info.nfs_mtime), int(info.nfs_mtime_nsec), self.used)
        self.modified = (int(info.nfs_mtime), int(info.nfs_mtime_nsec))
        lib.nfs_set_timeout(self.nfs, int(request_seconds() * 1000))

    def _make(self, file: bytes, size: int, handle: Any) -> None:
        """What is there is emptied."""
        lib = self.library.lib
        info = ffi.new("struct nfs_stat_64 *")
        self.is_new = lib.nfs_lstat64(self.nfs, file, info) == -errno.ENOENT
        status = lib.nfs_creat(self.nfs, file, 0o644, handle)
        self.created = status == 0
        if self.created:
            for length in (size, 0, size):  # one that is too large for the server empties no file
                status = status or lib.nfs_ftruncate(self.nfs, handle[0], length)
        if status != 0:
            raise cannot_create(self.name, _short(text_of(lib.nfs_get_error(self.nfs)), status))

    def remove(self, inode: int, handle: str, *, whatever_size: bool) -> bool:
        """Mount, and end: remove the file of that inode and handle, if the name leads to it; whether it did.
        `whatever_size`: not only when it is empty.
        """
        self.open(Access.READ, None)
        try:
            if (self.inode, self.handle()) != (inode, handle) or (self.size and not whatever_size):
                return False
            return bool(self.library.lib.nfs_unlink(self.nfs, self.file.encode()) == 0)
        finally:
            self.close()

    def handle(self) -> str:
        """The server's name for the open file, shortened: unlike the inode it never stands for another file later."""
        handle = self.library.lib.nfs_get_fh(self.fh)
        if ffi.NULL in (handle, handle.val) or not 0 < handle.len <= _LONGEST_HANDLE:
            return ""
        return hashlib.sha256(bytes(ffi.buffer(handle.val, handle.len))).hexdigest()[:16]

    def abandon(self) -> None:
        """Close it; a file that it made goes."""
        if self.created and self.is_new:
            self.library.lib.nfs_unlink(self.nfs, self.file.encode())
        self.close()

    def close(self) -> None:
        """Every request that is under way gets no answer any more."""
        self.library.lib.nfs_destroy_context(self.nfs)

    def _own(self, name: str, default: int) -> int:
        value = self.parameters.get(name, "")
        return int(value) if value.isdecimal() else default


def text_of(pointer: Any) -> str:
    """A string of the library's."""
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode(errors="replace")


def _short(text: str, status: int) -> str:
    """One clause: the system's word for the status, with the library's where it says more."""
    word = os.strerror(-status) if status < 0 else ""
    if -status in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EISDIR):
        return word
    text = " ".join(text.split())
    return text or word or "unknown error"
