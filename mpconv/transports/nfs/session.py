"""An NFS session: mounted, with one file open, made by libnfs's blocking calls.

The descriptor changes while they run, so nothing else may use the session until it is open. Every way to fail gets
its own words: libnfs says little more than that it failed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mpconv.model.errors import Absent, Busy, Denied, Fatal, MpconvError, NoSpace, NoSuchImage, Retryable, Unreachable
from mpconv.model.units import MiB
from mpconv.transports.base import Access, cannot_create, cannot_open, unlike
from mpconv.transports.identity import File
from mpconv.transports.native.libnfs import Library, ffi
from mpconv.transports.native.requests import request_seconds
from mpconv.transports.nfs.status import LOST, is_lost, meaning
from mpconv.transports.nfs.url import parse
from mpconv.transports.nfs.v42 import FileFacts, Where
from mpconv.transports.reachability import address_that_answers, why_unreachable

CONNECT_SECONDS = 10.0
PIECE = MiB
"""Bytes of one request at most: larger ones gain nothing and take the heap's memory."""
_PORTMAPPER = 111
_PORTS = 2
"""The mount service's and the NFS server's."""
_LONGEST_HANDLE = 128
"""Bytes, in NFSv4; 64 in NFSv3."""
_PRIVILEGED = "run as root, or export with 'insecure'"

Step = Callable[[], None]


class Session:
    """A context of libnfs. `facts`: of a file that is only read, for the map of its holes. `beneath`: as Opening's:
    that directory is mounted, and libnfs, which follows links itself, follows none out of what is mounted. `is_new`:
    the file was made by this session, and by no other.
    """

    def __init__(self, url: str, beneath: str | None = None) -> None:
        self.beneath = beneath
        self.library = Library()
        self._address = parse(url)
        self.parameters = self._address.parameters
        self.version_4 = self.parameters.get("version") == "4"
        self.name = url
        self.created = self.is_new = False
        self.nfs: Any = None
        self._directory, self._file = self._address.directory, self._address.file
        if beneath is not None:
            self._mount_above(beneath)

    def _mount_above(self, directory: str) -> None:
        """That directory, and not the one that the file lies in."""
        above = parse(f"{directory.rstrip('/')}/file").directory.rstrip("/")
        if not self._address.path.startswith(f"{above}/") or ".." in self._address.path.split("/"):
            raise cannot_open(self.name, f"it leads out of the directory '{directory}', in which alone it is allowed")
        self._directory, self._file = above or "/", self._address.path.removeprefix(f"{above}/")

    @property
    def _ports(self) -> list[int]:
        """Those that the URL names."""
        return [int(self.parameters[name]) for name in ("mountport", "nfsport") if name in self.parameters]

    def fail(self, status: int) -> MpconvError:
        """What the status of a call means. `Busy`: the same call may be made again."""
        text = text_of(self.library.lib.nfs_get_error(self.nfs))
        kind, why = meaning(status, text)
        if kind is Busy:
            return Busy(why, operation="opening", image=self.name)
        if status == -errno.ENOENT:
            return cannot_open(self.name, _short(text, status), NoSuchImage)
        if status in (-errno.EACCES, -errno.EPERM):
            return cannot_open(self.name, _short(text, status), Denied)
        passing = Unreachable if issubclass(kind, Retryable) else Fatal
        return cannot_open(self.name, _short(text, status), Absent if kind is Absent else passing)

    def _not_created(self, status: int) -> MpconvError:
        text = text_of(self.library.lib.nfs_get_error(self.nfs))
        kind, why = meaning(status, text)
        if kind is Busy:
            return Busy(why, operation="creating", image=self.name)
        final = kind if issubclass(kind, Denied | NoSpace) else Unreachable if is_lost(text) else Fatal
        return cannot_create(self.name, _short(text, status), kind=final)

    def not_mounted(self, status: int) -> MpconvError:
        """What is wrong with the server, its ports or its export, in words that tell what to do."""
        text = text_of(self.library.lib.nfs_get_error(self.nfs))
        server, path = self._address.host, self._directory
        kind, busy = meaning(status, text)
        if kind is Busy:
            return Busy(busy, operation="opening", image=self.name)
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
        ports = self._ports
        why = why_unreachable(server, ports if len(ports) == _PORTS else [_PORTMAPPER, *ports]) or ""
        if not why and "(null)" in text:
            why = f"the server refused the request: it may serve only ports below 1024 ({_PRIVILEGED})"
        return cannot_open(self.name, why or _short(text, status), Unreachable)

    def steps(self, access: Access, create_size: int | None, replaces: dict[str, str] | None = None) -> list[Step]:
        """All that is to be done until the file is open. One that raises `Busy` may be done again; after any other
        error the session is closed. `replaces`: as Opening's.
        """
        self._check(access, create_size)
        if create_size is None:
            steps: list[Step] = [lambda: self._open(access)]
        else:
            steps = [self._create if not replaces else lambda: self._open(Access.WRITE)]
            steps += [lambda: self._compare(replaces)] if replaces is not None else []
            # One that is too large for the server empties no file.
            steps += [partial(self._truncate, size) for size in (create_size, 0, create_size)]
        return [partial(self._closing, step) for step in (self._mount, *steps, lambda: self._look(access))]

    def _closing(self, step: Step) -> None:
        try:
            step()
        except Busy:
            raise
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
            self.close()

    def _check(self, access: Access, create_size: int | None) -> None:
        """Fatal when it cannot be, whatever the server says."""
        if self.version_4 and not self.library.writes_version_4:
            why = "libnfs 4 cannot write by NFSv4: leave 'version=4' out, or install libnfs 5 or later"
            if create_size is not None:
                raise cannot_create(self.name, why)
            if access is Access.WRITE:
                raise cannot_open(self.name, why)
        if not self._address.file:
            raise cannot_open(self.name, "Is a directory")

    def _mount(self) -> None:
        """On a context that is new: one that failed to mount is in between."""
        lib = self.library.lib
        self.close()
        self.nfs = lib.nfs_init_context()
        # The parameters are libnfs's to know, by a URL that has nothing else in it.
        parsed = lib.nfs_parse_url_full(self.nfs, f"nfs://host/export/file?{self._address.query}".encode())
        if parsed == ffi.NULL:
            raise cannot_open(self.name, text_of(lib.nfs_get_error(self.nfs)) or "not an NFS URL")
        lib.nfs_destroy_url(parsed)
        lib.nfs_set_autoreconnect(self.nfs, 0)
        lib.nfs_set_timeout(self.nfs, int(CONNECT_SECONDS * 1000))
        lib.nfs_umask(self.nfs, 0)  # it has one of its own
        # libnfs names an NFSv4 client by process number and second: to the server another connection with the same name
        # is the same client after a reboot, and all that the first one has open ends (NFS4ERR_EXPIRED).
        lib.nfs4_set_client_name(self.nfs, f"mpconv {secrets.token_hex(16)}".encode())
        # libnfs looks at the first address of a name alone.
        address = address_that_answers(self._address.host, self._ports or [_PORTMAPPER])
        status = lib.nfs_mount(self.nfs, os.fsencode(address), os.fsencode(self._directory))
        if status != 0:
            raise self.not_mounted(status)

    def _open(self, access: Access) -> None:
        flags = os.O_RDONLY if access is Access.READ else os.O_RDWR
        if self.version_4 and access is Access.WRITE:
            flags |= os.O_SYNC  # see nfs_writing
        handle = ffi.new("struct nfsfh **")
        status = self.library.lib.nfs_open(self.nfs, self._path, flags, handle)
        if status != 0:
            raise self.fail(status)
        self.fh = handle[0]

    def _create(self) -> None:
        """As local files are made: what the umask leaves, of everything but to execute."""
        if self.version_4:  # there libnfs makes only what is not there yet, and no file with O_SYNC
            with contextlib.suppress(NoSuchImage):
                self._open(Access.WRITE)
                self.created = True
                return
        lib, mode = self.library.lib, 0o666 & ~_umask()
        handle = ffi.new("struct nfsfh **")
        status = -errno.EEXIST
        if not self.version_4:
            status = lib.nfs_create(self.nfs, self._path, os.O_EXCL, mode, handle)
            self.is_new = status == 0
        if status == -errno.EEXIST:
            status = lib.nfs_creat(self.nfs, self._path, mode, handle)
        if status != 0:
            raise self._not_created(status)
        self.fh = handle[0]
        if self.version_4:
            lib.nfs_close(self.nfs, self.fh)
            self._open(Access.WRITE)

    def _compare(self, replaces: dict[str, str]) -> None:
        """Before it is emptied: whether it is the file that was looked at, or new. CREATE leaves one that is there."""
        info = ffi.new("struct nfs_stat_64 *")
        status = self.library.lib.nfs_fstat64(self.nfs, self.fh, info)
        if status != 0:
            raise self._not_created(status)
        self.inode = int(info.nfs_ino)
        why = unlike(replaces, self.marks()) if replaces else "it is not empty" if info.nfs_size else None
        if why is not None:
            told = f"another one has come in its place ({why}): see who did that, and begin anew"
            raise cannot_create(self.name, told)

    def _truncate(self, size: int) -> None:
        status = self.library.lib.nfs_ftruncate(self.nfs, self.fh, size)
        if status != 0:
            raise self._not_created(status)
        self.created = True

    @property
    def _path(self) -> bytes:
        """Of the file, in what is mounted."""
        return b"/" + os.fsencode(self._file)

    def _look(self, access: Access) -> None:
        """At what is open, as the server sees it."""
        lib = self.library.lib
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
            self._address.path,
            int(self.parameters.get("uid", os.getuid())),
            int(self.parameters.get("gid", os.getgid())),
        )
        self.facts: FileFacts | None = None
        self.used = int(info.nfs_used)
        if access is Access.READ:
            self.facts = FileFacts(self.size, self.inode, int(info.nfs_mtime), int(info.nfs_mtime_nsec), self.used)
        self.modified = (int(info.nfs_mtime), int(info.nfs_mtime_nsec))
        self.stamp = file_of(info, self.handle())
        lib.nfs_set_timeout(self.nfs, int(request_seconds() * 1000))

    def marks(self) -> dict[str, str]:
        """By what the open file is known again."""
        told = self.handle()
        return {"its inode": str(self.inode)} | ({"its file handle": told} if told else {})

    def handle(self) -> str:
        """The server's name for the open file, shortened: unlike the inode it never stands for another file later."""
        handle = self.library.lib.nfs_get_fh(self.fh)
        if ffi.NULL in (handle, handle.val) or not 0 < handle.len <= _LONGEST_HANDLE:
            return ""
        return hashlib.sha256(bytes(ffi.buffer(handle.val, handle.len))).hexdigest()[:16]

    def abandon(self) -> None:
        """Close it; a file that it made goes, by another session where the connection was lost."""
        if self.is_new and self.nfs is not None:
            info = ffi.new("struct nfs_stat_64 *")
            if self.library.lib.nfs_fstat64(self.nfs, self.fh, info) == 0:
                self._unlink(int(info.nfs_ino))
            elif is_lost(text_of(self.library.lib.nfs_get_error(self.nfs))):
                with contextlib.suppress(MpconvError):
                    Session(self.name, self.beneath).remove(None, self.handle())
        self.close()

    def remove(self, inode: int | None, handle: str) -> bool:
        """Mount, and end: remove the file of that handle, and of that inode if it is known, if it lies under the name;
        whether it did.
        """
        try:
            for step in self.steps(Access.READ, None):
                step()
            same = bool(handle) and self.handle() == handle and inode in (None, self.inode)
            return same and self._unlink(self.inode)
        finally:
            self.close()

    def _unlink(self, inode: int) -> bool:
        """Unless a link, or another file, lies there by now."""
        lib = self.library.lib
        info = ffi.new("struct nfs_stat_64 *")
        if lib.nfs_lstat64(self.nfs, self._path, info) != 0 or int(info.nfs_ino) != inode:
            return False
        return bool(lib.nfs_unlink(self.nfs, self._path) == 0)

    def close(self) -> None:
        """Every request that is under way gets no answer any more. May be called twice."""
        nfs, self.nfs = self.nfs, None
        if nfs is not None:
            self.library.lib.nfs_destroy_context(nfs)


def _umask() -> int:
    """Of this process: to ask the kernel by setting another one would be seen by other threads."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def file_of(info: Any, handle: str) -> File:
    """What the server tells of a file."""
    return File(
        int(info.nfs_ino),
        int(info.nfs_size),
        int(info.nfs_mtime) * 10**9 + int(info.nfs_mtime_nsec),
        int(info.nfs_ctime) * 10**9 + int(info.nfs_ctime_nsec),
        handle,
    )


def text_of(pointer: Any) -> str:
    """A string of the library's."""
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode(errors="replace")


def _short(text: str, status: int) -> str:
    """One clause: the system's word for the status, with the library's where it says more."""
    if is_lost(text):
        return LOST
    word = os.strerror(-status) if status < 0 else ""
    if -status in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EISDIR):
        return word
    text = " ".join(text.split())
    return text or word or "unknown error"
