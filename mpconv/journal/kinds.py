"""What lies where on a disk, a letter for each of at most 2,000 bins, for whoever looks at a journal. Pure."""

from __future__ import annotations

from mpconv.model.extent import Extent, Kind
from mpconv.model.units import bin_size


class Kinds:
    """Of a disk of `size` bytes. `d`: a bin has data; `z`: none, but zeros; `u`: neither, it is left to the backing
    file; `.`: nothing of it is done yet. `before`: the letters of an earlier run, none if there was none.
    """

    def __init__(self, size: int, before: bytes = b"") -> None:
        self._bin = bin_size(size)
        count = max(1, -(-size // self._bin))
        self._letters = bytearray(before if len(before) == count else b"." * count)
        self._told = bytes(self._letters)

    def add(self, extent: Extent) -> None:
        """It is done. Its zeros count as data where the source had them as data."""
        bins = slice(extent.start // self._bin, (extent.end - 1) // self._bin + 1)
        if extent.kind is Kind.DATA:
            self._letters[bins] = b"d" * (bins.stop - bins.start)
        elif extent.kind is Kind.ZERO:
            self._letters[bins] = self._letters[bins].replace(b".", b"z").replace(b"u", b"z")
        else:
            self._letters[bins] = self._letters[bins].replace(b".", b"u")

    def changed(self) -> bytes | None:
        """All letters; None: they are as they were at the last call."""
        letters = bytes(self._letters)
        if letters == self._told:
            return None
        self._told = letters
        return letters
