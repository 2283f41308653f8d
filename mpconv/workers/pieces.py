"""The leases a worker holds, cut into pieces of one buffer; its coroutines take those of the oldest lease first.

So a connection sees ascending offsets. In order, the pieces of a lease are written one after another, once the lease
holds its token.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from mpconv.extent import Extent, Kind
from mpconv.job import Job


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
    """What is told to the worker; the worker sends it on."""

    def ready(self, lease: HeldLease) -> None:
        """The first piece is read and there is no token yet."""
        raise NotImplementedError

    def done(self, lease: HeldLease) -> None:
        """Every byte of the lease is written."""
        raise NotImplementedError

    def hungry(self) -> None:
        """A piece was taken: maybe another lease is needed."""
        raise NotImplementedError

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        """These ranges (start, length) could not be read and became zeros."""
        raise NotImplementedError

    def differs(self, offset: int) -> None:
        """The images differ at this byte."""
        raise NotImplementedError

    def said(self, text: str) -> None:
        """How something is done."""
        raise NotImplementedError


class Pieces:
    """What there is to do. `waiting`: pieces that nobody has taken yet."""

    def __init__(self, job: Job, reports: Reports) -> None:
        self.job = job
        self.reports = reports
        self.waiting = 0
        self._leases: deque[HeldLease] = deque()
        self._arrived = asyncio.Condition()

    async def add(self, lease: HeldLease) -> None:
        """A lease has come. Zeros that need no buffer stay in one piece."""
        extent = lease.extent
        buffered = extent.kind is Kind.DATA or not self.job.sparse_size
        step = self.job.buffer_size if buffered else extent.length
        for at in range(extent.start, extent.end, step):
            lease.pieces.append(Extent(at, min(step, extent.end - at), extent.kind))
        lease.left = len(lease.pieces)
        lease.written_to = extent.start
        async with self._arrived:
            self._leases.append(lease)
            self.waiting += lease.left
            self._arrived.notify(lease.left)

    async def next(self) -> tuple[HeldLease, Extent]:
        """The next piece, once there is one."""
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

    async def may_write(self, lease: HeldLease, piece: Extent) -> None:
        """Wait for the lease's token and, in order, for the pieces before this one."""
        if not lease.token.is_set():
            if not lease.ready:
                lease.ready = True
                self.reports.ready(lease)
            await lease.token.wait()
        if self.job.in_order and lease.written_to < piece.start:
            async with lease.turn:
                await lease.turn.wait_for(lambda: lease.written_to >= piece.start)

    async def written(self, lease: HeldLease, piece: Extent) -> None:
        """The piece is done with."""
        lease.left -= 1
        if self.job.in_order:
            async with lease.turn:
                lease.written_to = piece.end
                lease.turn.notify_all()
        if lease.left == 0:
            self.reports.done(lease)
