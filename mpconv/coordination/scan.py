"""The walk over the source's block status: ahead of the cursor, but not without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from mpconv.model.errors import Fatal, Gone
from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import WholeBlocks
from mpconv.model.units import GiB
from mpconv.protocol.job import Job

_STATUS_AHEAD = 64 * GiB
_ROUNDS = 256
"""Between two looks at what else there is to do: where nothing is read for it, status never waits."""
_EXTENTS_AHEAD = 16384
"""Extents known and not leased, at which the walk of block status waits: some megabytes of memory."""


class StatusSource(Protocol):
    """What is worked through: an image, two of them side by side, a part of one."""

    @property
    def size(self) -> int:
        """In bytes, of the guest disk."""

    @property
    def seams(self) -> Sequence[int]:
        """Where one part ends and the next begins."""

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """As formats/base.py says it of an image."""


class StatusScan:
    """`found` takes the next extents, in order and without gaps, and tells how many are known that nobody copies yet.

    `block`: each block of so many bytes is in one extent. `keeping`: `named` gets the ranges (start, end) that
    counted as zeros without being read, ascending, neighbours in one.
    """

    def __init__(
        self,
        source: StatusSource,
        job: Job,
        block: int,
        found: Callable[[tuple[Extent, ...]], int],
        *,
        keeping: bool = False,
    ) -> None:
        self._source = source
        self._job = job
        self._blocks = WholeBlocks(block, job.size) if block > 1 else None
        self._found = found
        self._room = asyncio.Event()
        self._ahead = 0
        self.named: list[tuple[int, int]] | None = [] if keeping else None

    async def run(self) -> None:
        """To the end of the source. Raises what its block status raises."""
        at = rounds = 0
        while at < self._job.size:
            rounds += 1
            if rounds % _ROUNDS == 0:
                await asyncio.sleep(0)
            extents = await self._status(at, min(_STATUS_AHEAD, self._job.size - at))
            at = extents[-1].end
            whole = tuple(self._blocks.feed(extents) if self._blocks else extents)
            if self.named is not None:
                self._keep(self.named, whole)
            self.known(self._found(whole))
            while self._ahead > _EXTENTS_AHEAD:
                self._room.clear()
                await self._room.wait()

    @staticmethod
    def _keep(named: list[tuple[int, int]], extents: tuple[Extent, ...]) -> None:
        for extent in extents:
            if extent.kind is Kind.ZERO:
                start = named.pop()[0] if named and named[-1][1] == extent.start else extent.start
                named.append((start, extent.end))

    def known(self, ahead: int) -> None:
        """So many extents are known that nobody copies yet."""
        self._ahead = ahead
        if ahead <= _EXTENTS_AHEAD // 2:
            self._room.set()

    async def _status(self, at: int, length: int) -> list[Extent]:
        try:
            return await self._source.block_status(at, length)
        except Fatal as error:
            if not self._job.salvage or isinstance(error, Gone):
                raise
            return [Extent(at, length)]
