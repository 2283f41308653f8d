"""Sets of byte ranges. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from mpconv.model.extent import Extent, Kind


class WholeBlocks:
    """Moves the boundaries of extents, which come in ascending order without gaps, to multiples of `block`.

    A block of several kinds is data; the last one ends with the disk, at `size`.
    """

    def __init__(self, block: int, size: int) -> None:
        self._block = block
        self._size = size
        self._at = 0
        self._kinds: set[Kind] = set()

    def feed(self, extents: Iterable[Extent]) -> list[Extent]:
        """The next extents; what is certain now."""
        found: list[Extent] = []
        for extent in extents:
            if self._kinds:
                self._kinds.add(extent.kind)
                end = min(self._at + self._block, self._size)
                if extent.end < end:
                    continue
                self._give(found, end, self._mixed())
            whole = extent.end if extent.end == self._size else extent.end - extent.end % self._block
            if whole > self._at:
                self._give(found, whole, extent.kind)
            if extent.end > self._at:
                self._kinds.add(extent.kind)
        return found

    def _give(self, found: list[Extent], end: int, kind: Kind) -> None:
        found.append(Extent(self._at, end - self._at, kind))
        self._at = end
        self._kinds.clear()

    def _mixed(self) -> Kind:
        """Zeros beside what is left to a backing file are neither: the block is read."""
        return next(iter(self._kinds)) if len(self._kinds) == 1 else Kind.DATA


class Ranges:
    """A set of bytes: ascending ranges (start, end) that neither overlap nor touch.

    A range takes 16 bytes of memory, so half a million of them are cheap. To add at the end, to join a neighbour and
    to take from the front cost O(log n); the rest moves memory, in C.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts = array("q")
        self._ends = array("q")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._starts)

    @property
    def first(self) -> tuple[int, int]:
        """The lowest range. IndexError when there is none."""
        return self._starts[0], self._ends[0]

    def add(self, start: int, end: int) -> None:
        """The bytes from `start` up to `end`, which are not none, belong to the set now."""
        starts, ends = self._starts, self._ends
        if not starts or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            return
        low = bisect_left(ends, start)
        high = bisect_right(starts, end, low)
        if low == high:
            starts.insert(low, start)
            ends.insert(low, end)
            return
        starts[low] = min(start, starts[low])
        ends[low] = max(end, ends[high - 1])
        del starts[low + 1 : high]
        del ends[low + 1 : high]

    def cut_front(self, at: int) -> None:
        """The bytes of the first range below `at`, its end at most, leave the set. IndexError when it is empty."""
        if at < self._ends[0]:
            self._starts[0] = at
        else:
            self._starts.pop(0)
            self._ends.pop(0)

    def covers(self, start: int, end: int) -> bool:
        """Whether all bytes from `start` up to `end` are in the set."""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def around(self, byte: int) -> tuple[int, int]:
        """The range that has the byte, which is in the set."""
        index = bisect_right(self._starts, byte) - 1
        return self._starts[index], self._ends[index]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of the set lies from `start` up to `end`, ascending, cut to it."""
        index = bisect_right(self._ends, start)
        while index < len(self._starts) and self._starts[index] < end:
            yield max(start, self._starts[index]), min(end, self._ends[index])
            index += 1
