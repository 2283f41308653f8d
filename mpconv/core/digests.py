"""Sums of block digests, for each region of the disk: what was read, or what a log of it says."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mpconv.model.digest import MODULUS, REGION, WIDTH

Packed = bytes
"""Sums of consecutive regions, 16 bytes each, as mpconv/model/digest.py packs them."""

_PAGE = 4096
"""Regions whose sums are kept together, 64 KiB of memory: where a disk has only zeros there are none."""
_ROW = 64
"""Regions that are looked at together for whether there is anything."""
_HEAD = struct.Struct("<QI")


class Sums:
    """The sum of each region, modulo 2^128; `total`: that of them all. A disk may be as large as it likes."""

    def __init__(self) -> None:
        self.total = 0
        self._pages: dict[int, bytearray] = {}

    def add(self, start: int, sums: Packed) -> None:
        """The regions begin with that of byte `start`."""
        self._change(start, sums, 1)

    def take_back(self, start: int, sums: Packed) -> None:
        """What was added counts no more."""
        self._change(start, sums, -1)

    def _change(self, start: int, sums: Packed, sign: int) -> None:
        region = start // REGION
        for at in range(0, len(sums), WIDTH):
            value = int.from_bytes(sums[at : at + WIDTH], "little")
            if value:
                page, place = divmod(region, _PAGE)
                found = self._pages.get(page)
                if found is None:
                    found = self._pages[page] = bytearray(_PAGE * WIDTH)
                here = slice(place * WIDTH, (place + 1) * WIDTH)
                changed = (int.from_bytes(found[here], "little") + sign * value) % MODULUS
                found[here] = changed.to_bytes(WIDTH, "little")
                self.total = (self.total + sign * value) % MODULUS
            region += 1

    def __getitem__(self, region: int) -> int:
        page, place = divmod(region, _PAGE)
        found = self._pages.get(page)
        return int.from_bytes(found[place * WIDTH : (place + 1) * WIDTH], "little") if found is not None else 0

    def regions(self) -> Iterator[int]:
        """Those whose sum is not 0, ascending: where there is data."""
        for number, page in sorted(self._pages.items()):
            for first in range(0, _PAGE, _ROW):
                if any(page[first * WIDTH : (first + _ROW) * WIDTH]):
                    regions = range(number * _PAGE + first, number * _PAGE + first + _ROW)
                    yield from (region for region in regions if self[region])


class Log:
    """What was added to Sums, to be taken back when it is lost. Each takes 12 bytes more than it has itself."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def note(self, start: int, sums: Packed) -> None:
        """These were added, from that byte on."""
        if sums:
            self._bytes += _HEAD.pack(start, len(sums)) + sums

    def __iter__(self) -> Iterator[tuple[int, Packed]]:
        at = 0
        while at < len(self._bytes):
            start, length = _HEAD.unpack_from(self._bytes, at)
            at += _HEAD.size
            yield start, bytes(self._bytes[at : at + length])
            at += length
