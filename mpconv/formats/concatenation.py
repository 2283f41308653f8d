"""Several images one after the other, as one guest disk. Each is padded to whole sectors by itself."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from mpconv.formats.base import Image
from mpconv.model.extent import Extent
from mpconv.transports.base import Buffer, Transport


class Concatenation:
    """One image or more. `size`: of all of them, in bytes. `format`: the first one's."""

    def __init__(self, parts: list[Image]) -> None:
        self.parts = parts
        self._ends = list(accumulate(part.size for part in parts))
        self.size = self._ends[-1]
        self.format = parts[0].format

    def _part(self, offset: int) -> tuple[Image, int]:
        """Which part has the byte, and where that part begins."""
        index = bisect_right(self._ends, offset)
        return self.parts[index], self._ends[index - 1] if index else 0

    @property
    def stores(self) -> list[Transport]:
        """What the images lie in."""
        return [store for part in self.parts for store in part.stores]

    @property
    def seams(self) -> tuple[int, ...]:
        """Where one part ends and the next begins."""
        return tuple(self._ends[:-1])

    def locate(self, offset: int, length: int) -> list[tuple[Transport, int, int]]:
        """As the part's; of the first part alone, when the range goes on into the next."""
        part, start = self._part(offset)
        return part.locate(offset - start, min(length, start + part.size - offset))

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from guest byte `offset`."""
        done = 0
        while done < len(buffer):
            part, start = self._part(offset + done)
            at = offset + done - start
            length = min(len(buffer) - done, part.size - at)
            await part.read_into(at, buffer[done : done + length])
            done += length

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """As the part's in which `offset` lies, and no further than its end."""
        part, start = self._part(offset)
        extents = await part.block_status(offset - start, min(length, start + part.size - offset))
        return [Extent(start + extent.start, extent.length, extent.kind) for extent in extents]

    async def close(self) -> None:
        """Give all connections back."""
        for part in self.parts:
            await part.close()
