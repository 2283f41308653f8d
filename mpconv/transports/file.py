"""Local files and block devices, by preadv and pwritev in a few threads.

Threads, because a read of a local disk blocks and the event loop also serves network storage; the calls release
the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mpconv.errors import Fatal, NoSuchImage, Retryable
from mpconv.extent import Extent, Kind
from mpconv.transports.base import (
    AS_USUAL,
    CLOSED,
    Access,
    Buffer,
    Limits,
    Opening,
    Transport,
    cannot_create,
    cannot_open,
)
from mpconv.units import MiB

_SHRUNK = "the file ends here: it has shrunk"
_THREADS = 8
_BLKGETSIZE64 = 0x80081272
_BLKZEROOUT = 0x127F
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY}

_NOT_A_STORE = "neither a regular file nor a block device"

_T = TypeVar("_T")


class FileTransport(Transport):
    """A regular file or block device."""

    limits = Limits(largest_read=16 * MiB, largest_write=16 * MiB)

    def __init__(self, name: str, fd: int, *, created: bool) -> None:
        self.name = name
        self._fd = fd
        info = os.fstat(fd)
        self._device = stat.S_ISBLK(info.st_mode)
        self.identity = ("device", info.st_rdev) if self._device else ("file", info.st_dev, info.st_ino)
        if self._device:
            self.size = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
        else:
            self.size = info.st_size
        self.zero_initialised = created and not self._device
        self.creatable = not self._device
        self._can_zero = True
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
            kind = Retryable if error.errno in (errno.EINTR, errno.EAGAIN) else Fatal
            raise self.error(kind, operation, offset, os.strerror(error.errno or 0)) from error

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))

        def read() -> int:
            done = 0
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    break
                done += count
            return done

        done = await self._run("reading", offset, read)
        if done < len(buffer):
            raise self.error(Fatal, "reading", offset + done, _SHRUNK)

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))

        def write() -> None:
            done = 0
            while done < len(buffer):
                done += os.pwritev(self._fd, [buffer[done:]], offset + done)

        await self._run("writing", offset, write)

    async def zero(self, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        if not self._can_zero or not length:
            return self._can_zero

        def zero() -> bool:
            try:
                if self._device:
                    fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
                else:
                    _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return False
                raise
            return True

        self._can_zero = await self._run("writing", offset, zero)
        return self._can_zero

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self._check("reading block status", offset, length)
        if self._device:
            return [Extent(offset, length)]
        return await self._run("reading block status", offset, lambda: self._status(offset, offset + length))

    def _status(self, offset: int, end: int) -> list[Extent]:
        extents: list[Extent] = []
        while offset < end and len(extents) < 1024:
            try:
                data = min(end, os.lseek(self._fd, offset, os.SEEK_DATA))
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return [*extents, Extent(offset, end - offset)]
                if error.errno != errno.ENXIO:
                    raise
                if os.fstat(self._fd).st_size < end:
                    raise self.error(Fatal, "reading block status", offset, _SHRUNK) from error
                data = end
            if data > offset:
                extents.append(Extent(offset, data - offset, Kind.ZERO))
            if data < end:
                hole = min(end, os.lseek(self._fd, data, os.SEEK_HOLE))
                extents.append(Extent(data, hole - data))
                offset = hole
            else:
                offset = end
        return extents

    async def flush(self) -> None:
        await self._run("flushing", None, lambda: os.fdatasync(self._fd))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        os.close(self._fd)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> FileTransport:
    """Open `url` (a path, or file:PATH); `create_size` makes a regular file of that size, all zero."""
    path = url
    if url.startswith("file:"):
        path = url.removeprefix("file:")
        if path.startswith("//"):
            path = path[2:]
    fd = -1
    try:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):  # to open a FIFO would block
            raise cannot_open(url, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else _NOT_A_STORE)
        if create_size is not None:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.ftruncate(fd, create_size)
        else:
            fd = os.open(path, (os.O_RDONLY if access is Access.READ else os.O_RDWR) | os.O_CLOEXEC)
        return FileTransport(url, fd, created=create_size is not None)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        why = os.strerror(error.errno or 0)
        if create_size is not None:
            raise cannot_create(url, why) from error
        raise cannot_open(url, why, NoSuchImage if error.errno == errno.ENOENT else Fatal) from error
