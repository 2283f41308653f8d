"""Local files and block devices, by preadv and pwritev in a few threads.

Threads, because a read of a local disk blocks and the event loop also serves network storage; the calls release
the interpreter's lock. How bytes go past the page cache is in io.py, zeros are in zeroing.py, QEMU's locks in locks.py.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

from mpconv.model.errors import (
    Denied,
    Fatal,
    InUse,
    MpconvError,
    NoSpace,
    NoSuchImage,
    Retryable,
    StatusWithdrawn,
    UsageError,
)
from mpconv.model.extent import Extent
from mpconv.model.units import MiB, align_down, align_up
from mpconv.transports.base import (
    AS_USUAL,
    CLOSED,
    REMOVED,
    Access,
    Buffer,
    Fingerprint,
    Limits,
    Opening,
    Sharing,
    Transport,
    cannot_create,
    cannot_open,
)
from mpconv.transports.file import holes, layers, locks
from mpconv.transports.file import identity as file_identity
from mpconv.transports.file.beneath import Outside, open_beneath
from mpconv.transports.file.io import BLOCK, OpenFile
from mpconv.transports.file.zeroing import UNSUPPORTED, Zeroing
from mpconv.transports.identity import Facts
from mpconv.transports.native.threads import in_any_case

_SHRUNK = "the file ends here: it has shrunk; see who writes to it, and begin anew"
_THREADS = 8
_BLKGETSIZE64 = 0x80081272
_BLKROGET = 0x125E
_NO_COPY = UNSUPPORTED | {errno.EXDEV, errno.EBADF, errno.EPERM, errno.ETXTBSY, errno.EOVERFLOW}
"""Not between these two, or not by this kernel (EPERM: containers forbid what they do not know)."""
_PREALLOCATED = 16 * MiB

_NOT_DIRECT = "filesystem does not support O_DIRECT"
_NOT_A_STORE = "neither a regular file nor a block device"

_KINDS_OF_OPENING: dict[int, type[Fatal]] = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EFBIG: NoSpace,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""No file can be made under that name. A directory that is missing may be mounted later."""
_KINDS: dict[int, type[MpconvError]] = {**_KINDS_OF_OPENING, errno.EINTR: Retryable, errno.EAGAIN: Retryable}

_LOCKS = {
    Sharing.NOTHING: locks.SOURCE,
    Sharing.WRITES: locks.DATA_FILE,
    Sharing.ALL: locks.LOOKED_AT,
}

_LONGEST = (1 << 63) - (1 << 30)
"""Bytes: qemu-img opens no longer one."""
_T = TypeVar("_T")


class FileTransport(Transport):
    """A regular file or block device."""

    def __init__(self, name: str, fd: int, direct: int, *, made_at: str | None = None) -> None:
        """`made_at`: the file's name without links, if it was made to open it."""
        self.name = name
        self._made_at = made_at
        self._fd = fd
        self._file = OpenFile(fd, direct)
        info = os.fstat(fd)
        self.device = stat.S_ISBLK(info.st_mode)
        self.identity = ("device", info.st_rdev) if self.device else ("file", info.st_dev, info.st_ino)
        self.marks = file_identity.marks(fd)
        if self.device:
            self.size = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
        else:
            self.size = info.st_size
        self.limits = Limits(BLOCK if direct >= 0 else 1, largest_read=16 * MiB, largest_write=16 * MiB)
        self.creatable = self.grows = not self.device
        self._zeroing = Zeroing(fd, device=self.device)
        self.stamp = None if self.device else layers.file_of(fd)
        self._tells_holes = True
        self._closed = False
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="file")

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._closed:
            raise self.error(Retryable, operation, offset, CLOSED)
        super()._check(operation, offset, length)

    async def _run(self, operation: str, offset: int | None, call: Callable[[], _T]) -> _T:
        self._check(operation, None, 0)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except OSError as error:
            number = error.errno or 0
            raise self.error(_KINDS.get(number, Fatal), operation, offset, os.strerror(number)) from error

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))
        done = await self._run("reading", offset, lambda: self._file.read(offset, buffer))
        if done < len(buffer):
            raise self.error(Fatal, "reading", offset + done, _SHRUNK)

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))
        await self._run("writing", offset, lambda: self._file.write(offset, buffer))

    async def write_parts(self, offset: int, parts: list[Buffer]) -> None:
        self._check("writing", offset, sum(map(len, parts)))
        await self._run("writing", offset, lambda: self._file.write_parts(offset, parts))

    async def zero(self, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        if self._zeroing.words is None or not length:
            return self._zeroing.words is not None
        return await self._run("writing", offset, lambda: self._zero(offset, offset + length))

    def _zero(self, offset: int, end: int) -> bool:
        if not self.device:
            return self._zeroing.zero(offset, end - offset)
        first, last = align_up(offset, BLOCK), align_down(end, BLOCK)
        if first >= last or not self._zeroing.zero(first, last - first):
            return False
        for start, stop in ((offset, first), (last, end)):
            self._file.write(start, memoryview(bytes(stop - start)))
        return True

    @property
    def zeroing(self) -> str:
        return self._zeroing.words or super().zeroing

    async def copy_from(self, source: Transport, source_offset: int, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        if not isinstance(source, FileTransport) or source.device or self.device:
            return False
        source._check("reading", source_offset, length)
        held = os.fdopen(os.dup(source._fd), "rb", buffering=0)  # the source does not wait for us when it is closed

        def copy() -> bool:
            done = 0
            with held:
                while done < length:
                    count = os.copy_file_range(
                        held.fileno(), self._fd, length - done, source_offset + done, offset + done
                    )
                    if count == 0:
                        return False
                    done += count
            return True

        def copied() -> bool:
            try:
                return copy()
            except OSError as error:
                if error.errno in _NO_COPY:
                    return False
                raise

        return await self._run("writing", offset, copied)

    async def disk_size(self) -> int | None:
        return await self._run("asking for the disk size", None, lambda: os.fstat(self._fd).st_blocks * 512)

    async def fingerprint(self) -> Fingerprint:
        what = "asking what file it is"
        return await self._run(
            what, None, lambda: file_identity.device(self._fd) if self.device else file_identity.file(self._fd)
        )

    async def known_by(self) -> Facts:
        return await self._run("asking what it is", None, lambda: layers.facts_of(self._fd, self.size))

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self._check("reading block status", offset, length)
        if self.device or not self._tells_holes:
            return [Extent(offset, length)]
        return await self._run("reading block status", offset, lambda: self._status(offset, offset + length))

    def _status(self, offset: int, end: int) -> list[Extent]:
        try:
            return holes.extents(self._fd, offset, end)
        except holes.Shrunk as error:
            raise self.error(Fatal, "reading block status", error.at, _SHRUNK) from error
        except holes.Impossible as error:
            self._tells_holes = False
            why = f"what the file system says of its holes cannot be true ({error})"
            raise self.error(StatusWithdrawn, "reading block status", offset, why) from None

    async def flush(self) -> None:
        await self._run("flushing", None, self._file.flush)

    def begin(self, size: int) -> None:
        """Of a file: it is empty from now on, and of that size. Not sooner: what another program has open, or is not to
        be written, stays as it is.
        """
        for length in (size, 0, size):  # one that is too large for the file system empties no file
            os.ftruncate(self._fd, length)
        self.size = size
        self.zero_initialised = not self.device

    async def preallocate(self, how: str) -> None:
        """Take up the room for all bytes of a file that was just made: "falloc", or "full" with zeros written.

        Else for the first block, as qemu-img does: who finds out by reading which blocks direct I/O wants (QEMU does)
        learns it from no hole. Fatal, and the room is given back, when there is not enough for all.
        """
        what = "Could not preallocate new data"
        try:
            if how == "falloc" and self.size:
                await self._run("writing", 0, lambda: os.posix_fallocate(self._fd, 0, self.size))
            elif how == "full":
                what = "Could not write zeros for preallocation"
                zeros = memoryview(mmap.mmap(-1, _PREALLOCATED))
                for at in range(0, self.size, _PREALLOCATED):
                    await self.write(at, zeros[: self.size - at])
                await self.flush()
                return
        except MpconvError as error:
            os.ftruncate(self._fd, 0)
            kind = NoSpace if isinstance(error, NoSpace) else Fatal
            raise kind(f"{self.name}: error while converting raw: {what}: {error.why}") from error
        with suppress(MpconvError):  # the next write tells of a full disk
            await self.write(0, memoryview(bytes(min(self.size, BLOCK))))

    async def discard(self) -> bool:
        if self._closed or self._made_at is None:
            return False
        return await in_any_case(partial(_removed, self._fd, self._made_at))

    def made(self, *, locked: bool) -> None:
        """The file is there: of the locks those of a target are enough now."""
        if locked:
            locks.hold(self._fd, locks.TARGET)

    def claim(self, sharing: Sharing) -> bool:
        why = locks.hold(self._fd, _LOCKS[sharing])
        if why is not None:
            raise cannot_open(self.name, why, InUse)
        return True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await in_any_case(self._pool.shutdown)
        self._file.close()


def path_of(url: str) -> str:
    """Of a file: URL, or of a name that is none."""
    if not url.startswith("file:"):
        return url
    path = url.removeprefix("file:")
    return path[2:] if path.startswith("//") else path


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> FileTransport:
    """Open `url` (a path, or file:PATH); `create_size` makes a regular file of that size, all zero."""
    try:
        store = _open(url, access, create_size, opening)
    except OSError as error:
        raise _explained(error, url, create_size) from error
    if create_size is not None:
        try:
            if opening.judge is not None:
                await opening.judge(store)
            store.begin(create_size)
            await store.preallocate(opening.preallocation)
        except OSError as error:
            await store.discard()
            await store.close()
            raise _explained(error, url, create_size) from error
        except BaseException as error:
            removed = REMOVED if await store.discard() else ""
            if isinstance(error, MpconvError) and store.zero_initialised:
                error.why += f" (the target is incomplete{removed})"
            await store.close()
            raise
        store.made(locked=opening.locked)
    return store


def _explained(error: OSError, url: str, create_size: int | None) -> Fatal:
    why = str(error.strerror) if isinstance(error, Outside) else os.strerror(error.errno or 0)
    kind = _KINDS_OF_OPENING.get(error.errno or 0, Fatal)
    if create_size is not None:
        return cannot_create(url, why, path_of(url), UsageError if error.errno in _NO_PLACE else kind)
    return cannot_open(url, why, NoSuchImage if error.errno == errno.ENOENT else kind)


def _open(url: str, access: Access, create_size: int | None, opening: Opening) -> FileTransport:
    path = path_of(url)
    mode = _mode(path) if opening.beneath is None else None
    if mode is not None and not _holds_bytes(mode):  # to open some devices does something
        if not stat.S_ISDIR(mode):
            raise cannot_open(url, _NOT_A_STORE)
        if create_size is not None:
            raise cannot_create(url, os.strerror(errno.EISDIR), path, UsageError)
        if access is Access.WRITE:
            raise cannot_open(url, os.strerror(errno.EISDIR))
        if opening.direct:
            raise cannot_open(url, _NOT_DIRECT)
        raise cannot_open(url, f"'file' driver requires '{path}' to be a regular file")
    flags = os.O_CLOEXEC | (os.O_RDONLY if access is Access.READ and create_size is None else os.O_RDWR)
    with ExitStack() as opened:
        new = create_size is not None and mode is None and opening.beneath is None
        made_at = os.path.realpath(path) if new else None
        fd, made_at = _made(path, made_at, flags if create_size is None else flags | os.O_CREAT, opening.beneath)
        opened.callback(os.close, fd)
        mode = os.fstat(fd).st_mode  # under the path there may be another one by now
        if not _holds_bytes(mode):
            raise cannot_open(url, _NOT_A_STORE)
        if stat.S_ISBLK(mode) and flags & os.O_RDWR and _read_only(fd):
            raise cannot_open(url, f"The device is not writable: {os.strerror(errno.EACCES)}")
        if os.fstat(fd).st_size > _LONGEST:
            raise cannot_open(url, f"Could not refresh total sector count: {os.strerror(errno.EFBIG)}")
        if opening.locked:
            _lock(fd, url, access, create_size)
        if made_at is not None:  # not sooner: who has the lock has a use for it
            opened.callback(_removed, fd, made_at)
        direct = -1
        if opening.direct:
            direct = _open_direct(fd, url, flags)
            opened.callback(os.close, direct)
        store = FileTransport(url, fd, direct, made_at=made_at)
        store.growing = opening.growing and not store.device
        opened.pop_all()
    return store


def _holds_bytes(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _made(path: str, made_at: str | None, flags: int, beneath: str | None) -> tuple[int, str | None]:
    """A file that is made, and where: at `made_at`, without links, if there is none. Else the one that is there."""
    if made_at is not None:
        with suppress(FileExistsError):
            return os.open(made_at, flags | os.O_EXCL, 0o644), made_at
    return _descriptor(path, flags, beneath), None


def _removed(fd: int, path: str) -> bool:
    """Remove the file that is open, if it lies at `path`, which is no link; whether it did. While it is open its inode
    stands for no other.
    """
    try:
        ours, there = os.fstat(fd), os.lstat(path)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            return False
        os.unlink(path)
    except OSError:
        return False
    return True


def _descriptor(path: str, flags: int, beneath: str | None) -> int:
    """Never waiting for the other end of a FIFO that has come in the place of a file: for writing nobody does."""
    if flags & os.O_RDWR:
        return _opened(path, flags, beneath)
    try:
        fd = _opened(path, flags | os.O_NONBLOCK, beneath)
    except BlockingIOError:  # a file that somebody has a lease of: he is asked to give it back
        return _opened(path, flags, beneath)
    os.set_blocking(fd, True)
    return fd


def _opened(path: str, flags: int, beneath: str | None) -> int:
    return os.open(path, flags, 0o644) if beneath is None else open_beneath(beneath, path, flags)


def _read_only(fd: int) -> bool:
    """Such a device may be opened for writing; only the writes fail."""
    return bool(struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0])


def _lock(fd: int, url: str, access: Access, create_size: int | None) -> None:
    if create_size is not None:
        why = locks.hold(fd, locks.CREATING)
        if why is not None:
            raise InUse(f"{url}: error while converting raw: {why}")
        return
    why = locks.hold(fd, locks.SOURCE if access is Access.READ else locks.TARGET)
    if why is not None:
        raise cannot_open(url, why, InUse)


def _open_direct(fd: int, url: str, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT)  # under the path there may be another file by now
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise cannot_open(url, _NOT_DIRECT) from error
