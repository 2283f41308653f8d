"""The copy coroutine: lease -> read -> zeros -> commit token -> write -> done. The whole data path."""

from __future__ import annotations

import asyncio

from mpconv.extent import Extent, Kind
from mpconv.formats.opening import Image
from mpconv.job import Job
from mpconv.transports.base import Transport
from mpconv.workers import buffers
from mpconv.workers.pieces import HeldLease, Pieces, Reports
from mpconv.workers.salvage import read_what_can_be
from mpconv.workers.zeros import Run, find_runs

_ZEROS_IN_FLIGHT = 4


class Copier:
    """One job in one worker: its connections and its leases."""

    def __init__(self, job: Job, source: Image, targets: list[Transport], reports: Reports) -> None:
        self.job = job
        self.source = source
        self.targets = targets
        self.reports = reports
        self.pieces = Pieces(job, reports)
        self.alignment = max(target.limits.alignment for target in targets)
        self._offloads = job.offload
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Copy until cancelled. Any error ends it."""
        buffer = buffers.make(self.job.buffer_size)
        while True:
            lease, piece = await self.pieces.next()
            if piece.kind is Kind.DATA and self._offloads and await self._offload(lease, piece):
                await self.pieces.written(lease, piece)
                continue
            if piece.kind is Kind.DATA:
                view = buffer[: piece.length]
                await self._read(piece, view)
                runs = find_runs(view, piece.start, sparse_size=self.job.sparse_size, alignment=self.alignment)
            else:
                view = buffer[:0]
                runs = [(0, piece.length, True)]
            await self.pieces.may_write(lease, piece)
            for target in self.targets:
                await self._write(target, piece, view, runs)
            lease.zeros += sum(length for _, length, zero in runs if zero)
            await self.pieces.written(lease, piece)

    async def _read(self, piece: Extent, view: memoryview) -> None:
        if not self.job.salvage:
            await self.source.read_into(piece.start, view)
            return
        lost = await read_what_can_be(self.source, piece.start, view)
        for why, ranges in lost.items():
            self.reports.lost(ranges, why)

    async def _offload(self, lease: HeldLease, piece: Extent) -> bool:
        """Have the piece copied where it lies. Once that cannot be, it is not tried again."""
        await self.pieces.may_write(lease, piece)
        at = piece.start
        for store, offset, length in self.source.locate(piece.start, piece.length):
            for target in self.targets:
                if not await target.copy_from(store, offset, at, length):
                    self._offloads = False
                    self.reports.said(f"data is read and written: '{target.name}' cannot copy from '{store.name}'")
                    return False
            at += length
        for target in self.targets:
            await self._through(target)
        return at == piece.end

    async def _write(self, target: Transport, piece: Extent, view: memoryview, runs: list[Run]) -> None:
        for offset, length, zero in runs:
            start = piece.start + offset
            if not zero:
                await target.write(start, view[offset : offset + length])
            elif not self.job.zero_initialised and not await self._zero(target, start, length):
                await self._write_zeros(target, start, length)
        await self._through(target)

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
