"""How fast a store answers: requests of a few sizes, a few at a time, for a part of a second each."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence

from mpconv.inspection.doctor.findings import Cell
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import KiB, MiB, align_down
from mpconv.transports.base import Transport

SMALL, LARGE = 4 * KiB, MiB
SHAPES = ((SMALL, 1), (SMALL, 16), (LARGE, 1), (LARGE, 4), (LARGE, 16))
"""Bytes of a request, and how many are in flight."""
_MOST = 200_000
"""Requests of one cell: so many times take 2 MB."""

Request = Callable[[int, memoryview], Awaitable[None]]


class Places:
    """Where requests go: large ones one after the other, small ones anywhere; in data, where it is known to lie."""

    def __init__(self, extents: Sequence[Extent], size: int) -> None:
        data = [extent for extent in extents if extent.kind is Kind.DATA and extent.length >= LARGE]
        self._data = data or [Extent(0, size)]
        self._weights = list(itertools.accumulate(extent.length for extent in self._data))
        self._at = 0
        self._number = 0

    def fits(self, length: int) -> bool:
        """Whether there is room for a request of that many bytes."""
        return self._data[0].length >= length

    def take(self, length: int) -> int:
        """A byte from which on `length` bytes may be asked for."""
        if length < LARGE:
            [extent] = random.choices(self._data, cum_weights=self._weights)
            return extent.start + align_down(random.randint(0, extent.length - length), length)
        if self._at + length > self._data[self._number].length:
            self._number, self._at = (self._number + 1) % len(self._data), 0
        at = self._data[self._number].start + self._at
        self._at += length
        return at


async def measure(store: Transport, places: Places, seconds: float) -> list[Cell]:
    """How fast it is read, in about so many seconds. Raises what the store raises."""
    cells = []
    for size, depth in SHAPES:
        if places.fits(size):
            cells.append(await _cell(store.read_into, places, size, depth, seconds / len(SHAPES), writes=False))
    return cells


async def measure_writes(store: Transport, places: Places, seconds: float) -> list[Cell]:
    """How fast it is written, with bytes that no store makes smaller. It overwrites."""
    cells = []
    for size, depth in SHAPES:
        if places.fits(size):
            cells.append(await _cell(store.write, places, size, depth, seconds / len(SHAPES), writes=True))
    return cells


async def _cell(request: Request, places: Places, size: int, depth: int, seconds: float, *, writes: bool) -> Cell:
    clock = asyncio.get_running_loop().time
    times: list[float] = []

    async def one_after_the_other(buffer: memoryview) -> None:
        while True:
            started = clock()
            await request(places.take(size), buffer)
            ended = clock()
            times.append(ended - started)
            if ended - began >= seconds or len(times) >= _MOST:
                return

    buffers = [memoryview(bytearray(os.urandom(size) if writes else size)) for _ in range(depth)]
    began = clock()
    for error in await asyncio.gather(*map(one_after_the_other, buffers), return_exceptions=True):
        if error is not None:
            raise error
    took = clock() - began
    return Cell(writes, size, depth, len(times), statistics.median(times), max(times), size * len(times) / took)
