"""Reads and writes of an open file, past the page cache where that was asked for.

Direct I/O wants whole blocks of the file. What of a request is not whole blocks goes through a second, buffered
descriptor: the two never touch one block in one request, and a block that two requests share is in both a part, so
buffered in both.
"""

from __future__ import annotations

import errno
import mmap
import os

from mpconv.model.units import MiB
from mpconv.transports.base import Buffer

_MOST_PARTS = os.sysconf("SC_IOV_MAX")
BLOCK = 4096
"""Direct I/O goes in these: a page, and the largest block that disks and most filesystems have."""


class OpenFile:
    """A descriptor, and with `direct` (not -1) a second one of the same file, for direct I/O. Both are owned."""

    def __init__(self, fd: int, direct: int) -> None:
        self.fd = fd
        self._direct = direct

    def read(self, offset: int, buffer: Buffer) -> int:
        """Fill the buffer; less than all only at the end of the file. Bytes read."""
        at, end = offset, offset + len(buffer)
        while at < end:
            fd, stop = self._part(at, end)
            part = buffer[at - offset : stop - offset]
            try:
                count = os.preadv(fd, [part], at)
            except OSError as error:
                if fd != self._direct or error.errno != errno.EINVAL:
                    raise
                bounce = _bounce(part)
                count = os.preadv(fd, [bounce], at)
                part[:count] = bounce[:count]
            if count == 0:
                break
            at += count
        return at - offset

    def write(self, offset: int, buffer: Buffer) -> None:
        """Store all of the buffer."""
        at, end = offset, offset + len(buffer)
        while at < end:
            fd, stop = self._part(at, end)
            part = buffer[at - offset : stop - offset]
            try:
                at += os.pwritev(fd, [part], at)
            except OSError as error:
                if fd != self._direct or error.errno != errno.EINVAL:
                    raise
                bounce = _bounce(part)
                bounce[:] = part[: len(bounce)]
                at += os.pwritev(fd, [bounce], at)

    def write_parts(self, offset: int, parts: list[Buffer]) -> None:
        """Store several buffers one after the other, in one request where that can be."""
        written = os.pwritev(self.fd, parts, offset) if self._direct < 0 and len(parts) <= _MOST_PARTS else 0
        if written < sum(map(len, parts)):
            self.write(offset + written, memoryview(b"".join(parts))[written:])

    def _part(self, at: int, end: int) -> tuple[int, int]:
        """By which descriptor it goes on at `at`, and how far."""
        if self._direct < 0:
            return self.fd, end
        if at % BLOCK:
            return self.fd, min(end, at - at % BLOCK + BLOCK)
        whole = end - end % BLOCK
        return (self._direct, whole) if whole > at else (self.fd, end)

    def flush(self) -> None:
        """Both descriptors' writes: they are of one inode, and direct ones have told of their errors."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Give both back."""
        os.close(self.fd)
        if self._direct >= 0:
            os.close(self._direct)


def _bounce(part: Buffer) -> memoryview:
    """A page-aligned buffer for the front of one that the device cannot reach where it lies."""
    return memoryview(mmap.mmap(-1, min(len(part), MiB)))
