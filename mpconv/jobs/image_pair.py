"""Two images side by side: what must be read to compare them. The shorter one goes on with zeros."""

from __future__ import annotations

from mpconv.formats.base import Image
from mpconv.model.extent import Extent, Kind


class Pair:
    """`size`: of the larger one. A range is ZERO when both are known to be zero there, else DATA."""

    seams: tuple[int, ...] = ()

    def __init__(self, first: Image, second: Image) -> None:
        self.size = max(first.size, second.size)
        self.stores = [*first.stores, *second.stores]
        self._statuses = (_Status(first), _Status(second))

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """One extent from `offset` on, as far as neither image's kind changes, at most `length` bytes."""
        one, other = [await status.at(offset, length) for status in self._statuses]
        kind = Kind.DATA if Kind.DATA in (one.kind, other.kind) else Kind.ZERO
        return [Extent(offset, min(one.end, other.end) - offset, kind)]


class _Status:
    """Block status of one image, asked for in long stretches and handed out in short ones, ascending."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._known: list[Extent] = []

    async def at(self, offset: int, length: int) -> Extent:
        """The extent at `offset`, which begins there, at most `length` bytes."""
        if offset >= self._image.size:
            return Extent(offset, length, Kind.ZERO)
        while self._known and self._known[-1].end <= offset:
            self._known.pop()
        if not self._known or self._known[-1].start > offset:
            self._known = (await self._image.block_status(offset, self._image.size - offset))[::-1]
        found = self._known[-1]
        return Extent(offset, min(found.end - offset, length), found.kind)
