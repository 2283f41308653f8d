"""The directory of persistent bitmaps: bytes -> where the bitmaps lie. Pure. The limits are QEMU's."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mpconv.errors import ImageError
from mpconv.formats.qcow2.header import Header
from mpconv.units import MiB, align_up

_ENTRY = struct.Struct(">QIIBBHI")
_MOST_BITMAPS = 65535
_LARGEST_DIRECTORY = 64 * MiB
_LARGEST_BITMAP = 512 * MiB
_LARGEST_TABLES = 256 * MiB
"""Of all bitmaps together: more lie one over the other."""
_MIN_GRANULARITY, _MAX_GRANULARITY = 9, 31
_MAX_NAME = 1023
_RESERVED_FLAGS = 0xFFFF_FFFC
_DIRTY_TRACKING = 1
_RESERVED = 0xFF00_0000_0000_01FE
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_ALL_ONES = 1


@dataclass(frozen=True, slots=True)
class Table:
    """`size` counts entries: one for each cluster of a bitmap."""

    offset: int
    size: int


def check_directory(count: int, size: int, offset: int, cluster_size: int) -> None:
    """ImageError unless a directory of `size` bytes can lie there."""
    if not 0 < count <= _MOST_BITMAPS:
        raise ImageError("Check failed: bitmaps_ext: the number of bitmaps is wrong")
    if not 0 < size <= _LARGEST_DIRECTORY or offset % cluster_size or offset + size >= 1 << 63:
        raise ImageError("Check failed: bitmaps_ext: the bitmap directory has a wrong size or offset")


def tables(directory: bytes, count: int, header: Header) -> list[Table]:
    """Those of all bitmaps. ImageError when the directory is broken."""
    found: list[Table] = []
    at = 0
    while at < len(directory):
        if at + _ENTRY.size > len(directory):
            raise _broken()
        offset, size, flags, kind, granularity, name, extra = _ENTRY.unpack_from(directory, at)
        at = align_up(at + _ENTRY.size + name + extra, 8)
        if at > len(directory):
            raise _broken()
        bits = size * header.cluster_size * 8
        if (
            extra
            or not size
            or not offset
            or offset % header.cluster_size
            or offset >= 1 << 63
            or size * header.cluster_size > _LARGEST_BITMAP
            or not _MIN_GRANULARITY <= granularity <= _MAX_GRANULARITY
            or flags & _RESERVED_FLAGS
            or name > _MAX_NAME
            or kind != _DIRTY_TRACKING
            or header.size > bits << granularity
        ):
            raise _broken()
        found.append(Table(offset, size))
    if len(found) != count or sum(table.size * 8 for table in found) > _LARGEST_TABLES:
        raise _broken()
    return found


def data_offset(entry: int, cluster_size: int) -> int:
    """Where a cluster of a bitmap lies; 0: nowhere, it is all zeros or all ones. ImageError for what cannot be."""
    offset = entry & _OFFSET
    if entry & _RESERVED or (offset and (entry & _ALL_ONES or offset % cluster_size)):
        raise ImageError("Check failed: a table of a bitmap is broken")
    return offset


def _broken() -> ImageError:
    return ImageError("Check failed: the bitmap directory is broken")
