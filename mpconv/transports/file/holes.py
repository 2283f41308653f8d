"""Where a file has holes, as its file system tells by lseek. One in user space (FUSE) answers what it likes."""

from __future__ import annotations

import errno
import os

from mpconv.model.extent import Extent, Kind
from mpconv.transports.file.zeroing import UNSUPPORTED

_MOST = 1024


class Impossible(Exception):
    """An answer that is true of no file, in words."""


class Shrunk(Exception):
    """The file ends before the range does; `at`: where that was seen."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


def extents(fd: int, offset: int, end: int) -> list[Extent]:
    """From byte `offset`, without gaps, up to `end` or for 1024 extents and a little. Raises Impossible, Shrunk and
    OSError.
    """
    found: list[Extent] = []
    while offset < end and len(found) < _MOST:
        try:
            data = min(end, os.lseek(fd, offset, os.SEEK_DATA))
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return [*found, Extent(offset, end - offset)]
            if error.errno != errno.ENXIO:
                raise
            if os.fstat(fd).st_size < end:
                raise Shrunk(offset) from error
            data = end
        if data < offset:
            raise Impossible(f"the first data from byte {offset} on is at byte {data}")
        if data > offset:
            found.append(Extent(offset, data - offset, Kind.ZERO))
        offset = data
        if data < end:
            offset = min(end, os.lseek(fd, data, os.SEEK_HOLE))
            if offset <= data:
                raise Impossible(f"there is data at byte {data}, and the first hole from there on is at byte {offset}")
            found.append(Extent(data, offset - data))
    return found
