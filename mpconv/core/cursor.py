"""The cursor: the next extent to lease. Returned extents come first, the lowest of them before the others."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

from mpconv.extent import Extent
from mpconv.units import align_down


class Cursor:
    """Walks a disk of `size` bytes whose extents are fed in ascending order, without gaps."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fed = 0
        self._ahead: deque[Extent] = deque()
        self._returned: list[tuple[int, Extent]] = []

    def feed(self, extent: Extent) -> None:
        """The block status says what comes next. ValueError unless it starts where the last one ended."""
        if extent.start != self.fed or extent.end > self.size:
            raise ValueError(f"extent {extent} fed where byte {self.fed} of {self.size} was due")
        self._ahead.append(extent)
        self.fed = extent.end

    def give_back(self, extent: Extent) -> None:
        """An extent whose lease ended without being done."""
        heapq.heappush(self._returned, (extent.start, extent))

    def take(self, limit: Callable[[Extent], int], boundary: int) -> Extent | None:
        """The next extent, cut to `limit(extent)` bytes; a cut falls on a multiple of `boundary`. None: no more now."""
        if self._returned:
            extent = heapq.heappop(self._returned)[1]
        elif self._ahead:
            extent = self._ahead.popleft()
        else:
            return None
        most = limit(extent)
        if extent.length <= most:
            return extent
        at = align_down(extent.start + most, boundary)
        if at <= extent.start:
            at = extent.start + most
        head, tail = extent.split(at)
        if (tail.end == self.fed and not self._ahead) or (self._ahead and tail.end == self._ahead[0].start):
            self._ahead.appendleft(tail)
        else:
            self.give_back(tail)
        return head

    @property
    def waiting(self) -> int:
        """Bytes that are known and not leased."""
        return sum(extent.length for extent in self.extents())

    def extents(self) -> list[Extent]:
        """What is known and not leased, for invariants."""
        return [extent for _, extent in self._returned] + list(self._ahead)

    @property
    def exhausted(self) -> bool:
        """Everything was fed, and all of it was taken."""
        return self.fed == self.size and not self._ahead and not self._returned
