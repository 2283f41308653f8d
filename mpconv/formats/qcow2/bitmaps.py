"""The directory of persistent bitmaps: bytes -> checked values. Pure.

Limits are those of QEMU's qcow2-bitmap.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mpconv.errors import ImageError
from mpconv.units import align_up

_ENTRY = struct.Struct(">QIIBBHI")
_MAX_BITMAPS = 65535
_MAX_NAME = 1023
LARGEST_DIRECTORY = _MAX_BITMAPS * align_up(_ENTRY.size + _MAX_NAME, 8)
_FLAGS = ((1, "in-use"), (2, "auto"))


@dataclass(frozen=True, slots=True)
class Bitmap:
    """`granularity`: the bytes of the guest disk that a bit stands for. `flags`: by QEMU's names."""

    name: str
    granularity: int
    flags: tuple[str, ...]

    @property
    def entry_size(self) -> int:
        """Bytes of its entry in a directory, without extra data."""
        return align_up(_ENTRY.size + len(self.name.encode(errors="surrogateescape")), 8)


def parse(directory: bytes, count: int) -> list[Bitmap]:
    """`count` bitmaps. ImageError for a directory that is no such thing."""
    if count > _MAX_BITMAPS:
        raise ImageError("bitmaps_ext: too many bitmaps")
    found = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise ImageError("the bitmap directory is cut off")
        _, _, flags, _, granularity, name_length, extra = _ENTRY.unpack_from(directory, at)
        name = at + _ENTRY.size + extra
        if name + name_length > len(directory) or name_length > _MAX_NAME or granularity >= 64:
            raise ImageError("an entry of the bitmap directory is broken")
        found.append(
            Bitmap(
                directory[name : name + name_length].decode(errors="surrogateescape"),
                1 << granularity,
                tuple(word for bit, word in _FLAGS if flags & bit),
            )
        )
        at = align_up(name + name_length, 8)
    return found
