"""A map of the disk in at most 2,000 bins, whatever its size: how many bytes of each are what, and how far. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mpconv.model.extent import Extent, Kind
from mpconv.model.units import bin_size
from mpconv.ui.monitor.facts import Map


class DiskMap:
    """Of a disk of `size` bytes. Extents that are added to one layer do not overlap, so what all of them cost is one
    step for each and one for each bin, however large they are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.bin = bin_size(size)
        self.count = max(1, -(-size // self.bin))
        self._data = self._layer()
        self._zero = self._layer()
        self._unallocated = self._layer()
        self._done = self._layer()
        self._durable = self._layer()
        self._verified = self._layer()
        self._known_kinds = ""

    def _layer(self) -> list[int]:
        return [0] * self.count

    def found(self, extents: Iterable[Extent]) -> None:
        """What the source has there."""
        layers = {Kind.DATA: self._data, Kind.ZERO: self._zero, Kind.UNALLOCATED: self._unallocated}
        for extent in extents:
            self._add(layers[extent.kind], extent.start, extent.length)

    def wrote(self, leases: Iterable[tuple[object, Extent, int]]) -> None:
        """They are written, so many bytes of each are zeros. What is nothing but zeros, though the source did not say
        so, is shown as that.
        """
        size, layer = self.bin, self._done
        for _, extent, zeros in leases:
            start, length = extent.start, extent.length
            first = start // size
            if start + length <= (first + 1) * size:
                layer[first] += length
            else:
                self._add(layer, start, length)
            if zeros == length and extent.kind is Kind.DATA:
                self._add(self._data, start, length, -1)
                self._add(self._zero, start, length)

    def done(self, extents: Iterable[Extent], *, durable: bool = False) -> None:
        """It needs no more work; if it is `durable`, not after a crash either."""
        for extent in extents:
            self._add(self._done, extent.start, extent.length)
        if durable:
            self.durable(extents)

    def durable(self, extents: Iterable[Extent]) -> None:
        """It was written, and is flushed now."""
        for extent in extents:
            self._add(self._durable, extent.start, extent.length)

    def undone(self, extents: Iterable[Extent]) -> None:
        """It counts as written no more."""
        for extent in extents:
            self._add(self._done, extent.start, extent.length, -1)

    def verified(self, extents: Iterable[Extent]) -> None:
        """They were read back."""
        for extent in extents:
            self._add(self._verified, extent.start, extent.length)

    def all_durable(self) -> None:
        """Whatever is done is flushed."""
        self._durable = list(self._done)

    def all_verified(self) -> None:
        """All of it was read back and is the source's."""
        self._verified = [self.bin] * self.count
        self._verified[-1] = self.size - (self.count - 1) * self.bin

    def none_verified(self) -> None:
        """It is read back once more, or another target is."""
        self._verified = self._layer()

    def all_kinds(self, kinds: str) -> None:
        """What lies where, as an earlier map told it."""
        self._known_kinds = kinds

    def facts(self, leased: Iterable[Extent] = (), in_doubt: Iterable[Extent] = ()) -> Map:
        """As it stands, with the leases that are open now."""
        marked: dict[int, str] = {}
        for extents, mark in ((leased, "l"), (in_doubt, "?")):
            for extent in extents:
                first, last = extent.start // self.bin, (extent.end - 1) // self.bin
                marked.update(dict.fromkeys(range(first, last + 1), mark))
        kinds, marks, levels = [], [], []
        full = self.bin
        for index in range(self.count):
            if index == self.count - 1:
                full = max(1, self.size - index * self.bin)
            done = max(self._done[index], self._verified[index])
            kinds.append(self._kind(index))
            marks.append(marked.get(index) or self._mark(index, done, full))
            levels.append("0" if done <= 0 else str(min(9, max(1, 9 * done // full))))
        return Map(self.bin, self._known_kinds or "".join(kinds), "".join(marks), "".join(levels))

    def _kind(self, index: int) -> str:
        if self._data[index] > 0:
            return "d"
        if self._zero[index] > 0:
            return "z"
        return "u" if self._unallocated[index] else "."

    def _mark(self, index: int, done: int, full: int) -> str:
        if self._verified[index] >= full:
            return "v"
        if done <= 0:
            return "."
        if done < full:
            return "p"
        return "s" if self._durable[index] >= full else "w"

    def _add(self, layer: list[int], start: int, length: int, sign: int = 1) -> None:
        """So many bytes more in each bin that the extent touches; less with `sign` -1."""
        size = self.bin
        first = start // size
        end = start + length
        last = (end - 1) // size
        if first == last:
            layer[first] += sign * length
            return
        layer[first] += sign * ((first + 1) * size - start)
        layer[last] += sign * (end - last * size)
        for index in range(first + 1, last):
            layer[index] += sign * size
