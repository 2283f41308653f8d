"""A part of an image, to be read by itself: what is not wanted of it counts as zeros."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from mpconv.formats.base import Image
from mpconv.model.extent import Extent, Kind


class Excerpt:
    """The first `size` bytes of an image. `wanted`: ranges (start, end) of them, ascending, apart from each other."""

    seams: tuple[int, ...] = ()

    def __init__(self, image: Image, size: int, wanted: Sequence[tuple[int, int]]) -> None:
        self.size = size
        self._image = image
        self._wanted = wanted
        self._ends = [end for _, end in wanted]

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """As the image's, inside a range that is wanted; between two, one extent of zeros."""
        end = offset + length
        index = bisect_right(self._ends, offset)
        if index == len(self._wanted):
            return [Extent(offset, length, Kind.ZERO)]
        start, stop = self._wanted[index]
        if offset < start:
            return [Extent(offset, min(end, start) - offset, Kind.ZERO)]
        return await self._image.block_status(offset, min(end, stop) - offset)
