"""The copy coroutine: lease -> read -> zeros -> commit token -> write -> done. The whole data path.

A lease is worked off in pieces of one buffer; the coroutines of a worker take the pieces of the oldest lease first,
so that a connection sees ascending offsets. In order, the pieces of a lease are written one after another, once
the lease holds its token.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from mpconv.extent import Extent, Kind
from mpconv.formats.raw import RawImage
from mpconv.job import Job
from mpconv.transports.base import Transport
from mpconv.workers import buffers
from mpconv.workers.zeros import find_runs


@dataclass(eq=False)
class HeldLease:
    """A lease as its worker sees it."""

    epoch: int
    extent: Extent
    token: asyncio.Event
    pieces: deque[Extent] = field(default_factory=deque)
    left: int = 0
    zeros: int = 0
    ready: bool = False
    written_to: int = 0
    turn: asyncio.Condition = field(default_factory=asyncio.Condition)


class Reports:
    """What the copier tells its worker; the worker sends it on."""

    def ready(self, lease: HeldLease) -> None:
        """The first piece is read and there is no token yet."""
        raise NotImplementedError

    def done(self, lease: HeldLease) -> None:
        """Every byte of the lease is written."""
        raise NotImplementedError

    def hungry(self) -> None:
        """A piece was taken: maybe another lease is needed."""
        raise NotImplementedError


class Copier:
    """One job in one worker: its connections and its leases."""

    def __init__(self, job: Job, source: RawImage, targets: list[Transport], reports: Reports) -> None:
        self.job = job
        self.source = source
        self.targets = targets
        self.reports = reports
        self.alignment = max(target.limits.alignment for target in targets)
        self._leases: deque[HeldLease] = deque()
        self._arrived = asyncio.Condition()
        self.waiting = 0

    async def add(self, lease: HeldLease) -> None:
        """A lease has come: cut it into pieces of one buffer."""
        extent = lease.extent
        step = self.job.buffer_size if extent.kind is Kind.DATA else extent.length
        at = extent.start
        while at < extent.end:
            length = min(step - at % step if step == self.job.buffer_size else step, extent.end - at)
            lease.pieces.append(Extent(at, length, extent.kind))
            at += length
        lease.left = len(lease.pieces)
        lease.written_to = extent.start
        async with self._arrived:
            self._leases.append(lease)
            self.waiting += lease.left
            self._arrived.notify(lease.left)

    async def _next(self) -> tuple[HeldLease, Extent]:
        async with self._arrived:
            while not self._leases:
                await self._arrived.wait()
            lease = self._leases[0]
            piece = lease.pieces.popleft()
            if not lease.pieces:
                self._leases.popleft()
            self.waiting -= 1
        self.reports.hungry()
        return lease, piece

    async def run(self) -> None:
        """Copy until cancelled. Any error ends it."""
        buffer = buffers.make(self.job.buffer_size)
        while True:
            lease, piece = await self._next()
            if piece.kind is Kind.DATA:
                view = buffer[: piece.length]
                await self.source.read_into(piece.start, view)
                runs = find_runs(view, piece.start, sparse_size=self.job.sparse_size, alignment=self.alignment)
            else:
                view = buffer[:0]
                runs = [(0, piece.length, True)]
            await self._may_write(lease, piece)
            for target in self.targets:
                await self._write(target, piece, view, runs)
            lease.zeros += sum(length for _, length, zero in runs if zero)
            await self._written(lease, piece)

    async def _may_write(self, lease: HeldLease, piece: Extent) -> None:
        if not lease.token.is_set():
            if not lease.ready:
                lease.ready = True
                self.reports.ready(lease)
            await lease.token.wait()
        if self.job.in_order and lease.written_to < piece.start:
            async with lease.turn:
                await lease.turn.wait_for(lambda: lease.written_to >= piece.start)

    async def _written(self, lease: HeldLease, piece: Extent) -> None:
        lease.left -= 1
        if self.job.in_order:
            async with lease.turn:
                lease.written_to = piece.end
                lease.turn.notify_all()
        if lease.left == 0:
            self.reports.done(lease)

    async def _write(
        self, target: Transport, piece: Extent, view: memoryview, runs: list[tuple[int, int, bool]]
    ) -> None:
        for offset, length, zero in runs:
            start = piece.start + offset
            if not zero:
                await target.write(start, view[offset : offset + length])
            elif not self.job.zero_initialised and not await target.zero(start, length):
                await self._write_zeros(target, start, length)

    async def _write_zeros(self, target: Transport, start: int, length: int) -> None:
        step = self.job.buffer_size
        zeros = _zeros(step)
        for at in range(start, start + length, step):
            await target.write(at, zeros[: min(step, start + length - at)])


_zero_buffers: dict[int, memoryview] = {}


def _zeros(size: int) -> memoryview:
    if size not in _zero_buffers:
        _zero_buffers[size] = memoryview(bytearray(size))
    return _zero_buffers[size]
