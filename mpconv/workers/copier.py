"""The copy coroutine: lease -> read -> zeros -> commit token -> write -> done. The whole data path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mpconv.formats.base import Image
from mpconv.model.extent import Extent, Kind
from mpconv.protocol.job import Job
from mpconv.transports.base import Transport
from mpconv.workers import buffers
from mpconv.workers.lease_queue import LeaseQueue, Piece, Reports
from mpconv.workers.salvage import read_what_can_be
from mpconv.workers.targets import all_of
from mpconv.workers.zeros import Run, find_runs

AddBlocks = Callable[[dict[int, int], int, memoryview], None]

_ZEROS_IN_FLIGHT = 4
_WRITES_TOGETHER = 4
"""In order, buffers that are written at a time over a connection that keeps their order.

One at a time, each ends in a stop of a round trip or two, and on a busy link these are long: their small packets queue
behind what is read. At 1 Gbit/s each way that was 99 MiB/s of 114.
"""
_WRITES_SHARE = 2
"""Where more is in flight than usual, because an image is far away, half of it may be written at a time: with 50 ms to
source and target four buffers make 22 MiB/s, and with 5 ms to both a quarter took 9 % longer than a half.
"""


class Copier:
    """One job in one worker: its connections and its leases."""

    def __init__(self, job: Job, source: Image, targets: list[Transport], reports: Reports) -> None:
        self.job = job
        self.source = source
        self.targets = targets
        self.reports = reports
        ordered = all(target.ordered for target in targets) and not job.write_through
        together = max(_WRITES_TOGETHER, job.requests // _WRITES_SHARE) if ordered else 1
        self.pieces = LeaseQueue(job, reports, together=together)
        self.alignment = max(target.limits.alignment for target in targets)
        self._offloads = job.offload
        self._add_blocks: AddBlocks | None = None
        if job.digest:
            from mpconv.workers.hashing import add_blocks  # noqa: PLC0415  (others do without)

            self._add_blocks = add_blocks
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Copy until cancelled. Any error ends it."""
        buffer = buffers.make(self.job.buffer_size)
        while True:
            await self._copy(await self.pieces.next(), buffer)

    async def run_below(self) -> None:
        """Copy what the others passed over; any error ends it."""
        buffer = buffers.make(self.job.buffer_size)
        while (piece := self.pieces.next_below()) is not None:
            await self._copy(piece, buffer)

    async def _copy(self, piece: Piece, buffer: memoryview) -> None:
        extent = piece.extent
        offloading = extent.kind is Kind.DATA and self._offloads
        if offloading:
            await self.pieces.may_write(piece)
            if await self._offload(extent):
                await self.pieces.written(piece)
                return
        if extent.kind is Kind.DATA:
            view = buffer[: extent.length]
            await self._read(piece, view)
            runs = find_runs(view, extent.start, sparse_size=self.job.sparse_size, alignment=self.alignment)
        else:
            view = buffer[:0]
            runs = [(0, extent.length, True)]
        if not offloading:
            await self.pieces.may_write(piece)
        # Another worker may have tried to have it copied, and died.
        spoilt = self.job.offload and any(target.copy_may_spoil for target in self.targets)
        zeros_are_there = self.job.zero_initialised and not spoilt
        await self._write(piece, view, [run for run in runs if not run[2]] if zeros_are_there else runs)
        piece.lease.zeros += sum(length for _, length, zero in runs if zero)
        await self.pieces.written(piece)

    async def _read(self, piece: Piece, view: memoryview) -> None:
        start = piece.extent.start
        if not self.job.salvage:
            await self.source.read_into(start, view)
        else:
            lost = await read_what_can_be(self.source, start, view)
            for why, ranges in lost.items():
                self.reports.lost(ranges, why)
        if self._add_blocks is not None:
            self._add_blocks(piece.lease.sums, start, view)

    async def _offload(self, extent: Extent) -> bool:
        """Have the bytes copied where it lies. Once that cannot be, it is not tried again."""
        at = extent.start
        for store, offset, length in self.source.locate(extent.start, extent.length):
            for target in self.targets:
                if not await target.copy_from(store, offset, at, length):
                    self._offloads = False
                    self.reports.said(f"data is read and written: '{target.name}' cannot copy from '{store.name}'")
                    return False
            at += length
        for target in self.targets:
            await self._through(target)
        return at == extent.end

    async def _write(self, piece: Piece, view: memoryview, runs: list[Run]) -> None:
        """To all targets at a time: a slow one holds nothing but the buffer."""
        behind = len(self.targets)

        async def write_to(target: Transport) -> None:
            nonlocal behind
            for run in runs:
                offset, length, zero = run
                start = piece.extent.start + offset
                if run is runs[-1]:
                    behind -= 1
                    if not behind:
                        await self.pieces.sending_the_last(piece)
                if not zero:
                    await target.write(start, view[offset : offset + length])
                elif not await self._zero(target, start, length):
                    await self._write_zeros(target, start, length)
            await self._through(target)

        await all_of([write_to(target) for target in self.targets])

    async def _through(self, target: Transport) -> None:
        if self.job.write_through:
            await target.flush()

    async def _zero(self, target: Transport, start: int, length: int) -> bool:
        """By something cheaper than writing; never with `-S 0`, which asks for room to be taken up."""
        if not self.job.sparse_size:
            return False
        done = await target.zero(start, length)
        if self._said.get(target.name) != target.zeroing:
            self._said[target.name] = target.zeroing
            self.reports.said(f"zeros on '{target.name}': {target.zeroing}")
        return done

    async def _write_zeros(self, target: Transport, start: int, length: int) -> None:
        """Plain zeros; out of order several buffers of them are in flight."""
        step = self.job.buffer_size
        zeros = _zeros(step)
        together = step if self.job.in_order else step * _ZEROS_IN_FLIGHT
        for first in range(start, start + length, together):
            end = min(first + together, start + length)
            await asyncio.gather(*(target.write(at, zeros[: min(step, end - at)]) for at in range(first, end, step)))


_zero_buffers: dict[int, memoryview] = {}


def _zeros(size: int) -> memoryview:
    if size not in _zero_buffers:
        _zero_buffers[size] = memoryview(bytearray(size))
    return _zero_buffers[size]
