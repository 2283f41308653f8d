"""The cursor: the next extent to lease. Returned extents come first, the lowest of them before the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import Ranges
from mpconv.model.units import align_down


class Cursor:
    """Walks a disk of `size` bytes whose extents are fed in ascending order, without gaps.

    Neighbours of one kind are joined, those that were fed and those that were given back alike; but what is fed is not
    joined across a seam, where one source image ends and the next begins.
    """

    def __init__(self, size: int, seams: Collection[int] = ()) -> None:
        self.size = size
        self._seams = frozenset(seams)
        self.fed = 0
        self._ahead: deque[Extent] = deque()
        self._returned: dict[Kind, Ranges] = {}

    def feed(self, extent: Extent) -> None:
        """The block status says what comes next. ValueError unless it starts where the last one ended."""
        if extent.start != self.fed or extent.end > self.size:
            raise ValueError(f"extent {extent} fed where byte {self.fed} of {self.size} was due")
        self.fed = extent.end
        if self._continues(extent):
            before = self._ahead.pop()
            extent = Extent(before.start, before.length + extent.length, extent.kind)
        self._ahead.append(extent)

    def _continues(self, extent: Extent) -> bool:
        if not self._ahead or extent.start in self._seams:
            return False
        before = self._ahead[-1]
        return before.kind is extent.kind and before.end == extent.start

    def skip(self, to: int) -> None:
        """Nothing up to byte `to` is left to do."""
        self.fed = to

    def give_back(self, extent: Extent) -> None:
        """An extent whose lease ended without being done, or whose bytes were lost again."""
        self._returned.setdefault(extent.kind, Ranges()).add(extent.start, extent.end)

    def peek(self) -> Extent | None:
        """The extent that `take` would cut from. None: no more now."""
        if self._returned:
            (start, end), kind = min((ranges.first, kind) for kind, ranges in self._returned.items())
            return Extent(start, end - start, kind)
        return self._ahead[0] if self._ahead else None

    def take(self, limit: Callable[[Extent], int], boundary: int) -> Extent | None:
        """The next extent, cut to `limit(extent)` bytes, by a multiple of `boundary` if it is more. None: no more now.

        So the pieces of an extent are counted from its own beginning, as qemu-img's buffers are: that decides which
        zeros lie in one piece.
        """
        extent = self.peek()
        if extent is None:
            return None
        most = limit(extent)
        tail: Extent | None = None
        if extent.length > most:
            extent, tail = extent.split(extent.start + (align_down(most, boundary) or most))
        if self._returned:
            ranges = self._returned[extent.kind]
            ranges.cut_front(extent.end)
            if not ranges:
                del self._returned[extent.kind]
        elif tail is not None:
            self._ahead[0] = tail
        else:
            self._ahead.popleft()
        return extent

    @property
    def ahead(self) -> int:
        """How many extents are known that were never leased."""
        return len(self._ahead)

    @property
    def waiting(self) -> int:
        """Bytes that are known and not leased. For tests: it counts them one extent at a time."""
        return sum(extent.length for extent in self.extents())

    def extents(self) -> list[Extent]:
        """What is known and not leased, for invariants."""
        returned = [
            Extent(start, end - start, kind) for kind, ranges in self._returned.items() for start, end in ranges
        ]
        return returned + list(self._ahead)

    @property
    def exhausted(self) -> bool:
        """Everything was fed, and all of it was taken."""
        return self.fed == self.size and not self._ahead and not self._returned
