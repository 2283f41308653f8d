"""The directory of persistent bitmaps and their tables: bytes -> checked values. Pure.

Limits and words are those of QEMU's qcow2-bitmap.c, which opens no image that breaks one.
"""

from __future__ import annotations

import struct

from msgspec import Struct

from mpconv.formats.qcow2.header import Header, check_table
from mpconv.model.errors import ImageError
from mpconv.model.units import MiB, align_up

_ENTRY = struct.Struct(">QIIBBHI")
_MOST_BITMAPS = 65535
_LARGEST_DIRECTORY = 1024 * _MOST_BITMAPS
_LARGEST_BITMAP = 512 * MiB
_LARGEST_TABLES = 256 * MiB
"""Of all bitmaps together: more lie one over the other."""
_MIN_GRANULARITY, _MAX_GRANULARITY = 9, 31
_MAX_NAME = 1023
_FLAGS = ((1, "in-use"), (2, "auto"))
_RESERVED_FLAGS = 0xFFFF_FFFC
_DIRTY_TRACKING = 1
_RESERVED = 0xFF00_0000_0000_01FE
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_ALL_ONES = 1


class Bitmap(Struct, frozen=True):
    """`granularity`: the bytes of the guest disk that a bit stands for. `flags`: by QEMU's names.

    `table_offset`, `table_size`: where its table lies, and the entries of it: one for each cluster of the bitmap.
    """

    name: str
    granularity: int
    flags: tuple[str, ...]
    table_offset: int
    table_size: int

    @property
    def entry_size(self) -> int:
        """Bytes of its entry in a directory, without extra data."""
        return align_up(_ENTRY.size + len(self.name.encode(errors="surrogateescape")), 8)


def check_place(count: int, size: int, offset: int, header: Header, file_size: int) -> None:
    """ImageError unless a directory of `size` bytes, of `count` bitmaps, can lie there."""
    if not count:
        raise ImageError("found bitmaps extension with zero bitmaps")
    if count > _MOST_BITMAPS:
        most = f"exceeding the QEMU supported maximum of {_MOST_BITMAPS}"
        raise ImageError(f"bitmaps_ext: Image has {count} bitmaps, {most}")
    if offset % header.cluster_size:
        raise ImageError("bitmaps_ext: invalid bitmap directory offset")
    if size > _LARGEST_DIRECTORY:
        most = f"exceeds the maximum supported size ({_LARGEST_DIRECTORY})"
        raise ImageError(f"bitmaps_ext: bitmap directory size ({size}) {most}")
    if not size:
        raise ImageError("Requested bitmap directory size is zero")
    check_table("Bitmap directory", offset, size, _LARGEST_DIRECTORY, header.cluster_size, file_size)


def parse(directory: bytes, count: int, header: Header) -> list[Bitmap]:
    """`count` bitmaps. ImageError for a directory that is no such thing."""
    found: list[Bitmap] = []
    at = 0
    while at < len(directory):
        if at + _ENTRY.size > len(directory):
            raise ImageError("Broken bitmap directory")
        if len(found) == count:
            raise ImageError("More bitmaps found than specified in header extension")
        offset, size, flags, kind, granularity, name_length, extra = _ENTRY.unpack_from(directory, at)
        start = at + _ENTRY.size
        at = align_up(start + extra + name_length, 8)
        if at > len(directory):
            raise ImageError("Broken bitmap directory")
        if extra:
            raise ImageError("Bitmap extra data is not supported")
        name = directory[start : start + name_length].decode(errors="surrogateescape")
        if (
            name_length > _MAX_NAME
            or kind != _DIRTY_TRACKING
            or flags & _RESERVED_FLAGS
            or not _MIN_GRANULARITY <= granularity <= _MAX_GRANULARITY
            or not _has_room(offset, size, granularity, header)
        ):
            raise ImageError(f"Bitmap '{name}' doesn't satisfy the constraints")
        words = tuple(word for bit, word in _FLAGS if flags & bit)
        found.append(Bitmap(name, 1 << granularity, words, offset, size))
    if len(found) != count:
        raise ImageError("Less bitmaps found than specified in header extension")
    if sum(bitmap.table_size * 8 for bitmap in found) > _LARGEST_TABLES:
        raise ImageError("the tables of the bitmaps are too large")
    return found


def _has_room(offset: int, size: int, granularity: int, header: Header) -> bool:
    """Whether a table of `size` entries can lie there, and is long enough for the disk."""
    room = size * header.cluster_size
    possible = bool(offset) and not offset % header.cluster_size and offset < 1 << 63
    return possible and 0 < room <= _LARGEST_BITMAP and header.size <= room * 8 << granularity


def data_offset(entry: int, cluster_size: int) -> int:
    """Where a cluster of a bitmap lies; 0: nowhere, it is all zeros or all ones. ImageError for what cannot be."""
    offset = entry & _OFFSET
    if entry & _RESERVED or (offset and (entry & _ALL_ONES or offset % cluster_size)):
        raise ImageError("Check failed: a table of a bitmap is broken")
    return offset
