"""The leases a worker holds, cut into pieces of one buffer; its coroutines take those of the oldest lease first.

So a connection sees ascending offsets. In order, pieces are written in the order in which they came, once their lease
holds its token: one after another, or a few under way together where the connection keeps the order in which they are
sent.
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
    pieces: deque[Piece] = field(default_factory=deque)
    left: int = 0
    zeros: int = 0
    ready: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A buffer's worth of a lease, or zeros of any length. `turn`: its place in the order of writing, from 0."""

    lease: HeldLease
    extent: Extent
    turn: int


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
    """What there is to do. `waiting`: pieces that nobody has taken yet. `together`: how many pieces may be written at a
    time in order.
    """

    def __init__(self, job: Job, reports: Reports, *, together: int = 1) -> None:
        self.job = job
        self.reports = reports
        self.waiting = 0
        self._together = together
        self._leases: deque[HeldLease] = deque()
        self._arrived = asyncio.Condition()
        self._came = 0
        self._turn = 0
        self._under_way = 0
        self._turns = asyncio.Condition()

    async def add(self, lease: HeldLease) -> None:
        """A lease has come. Zeros that need no buffer stay in one piece."""
        extent = lease.extent
        buffered = extent.kind is Kind.DATA or not self.job.sparse_size
        step = self.job.buffer_size if buffered else extent.length
        for at in range(extent.start, extent.end, step):
            cut = Extent(at, min(step, extent.end - at), extent.kind)
            lease.pieces.append(Piece(lease, cut, self._came))
            self._came += 1
        lease.left = len(lease.pieces)
        async with self._arrived:
            self._leases.append(lease)
            self.waiting += lease.left
            self._arrived.notify(lease.left)

    async def next(self) -> Piece:
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
        return piece

    async def may_write(self, piece: Piece) -> None:
        """Wait for the lease's token and, in order, for the piece's turn."""
        lease = piece.lease
        if not lease.token.is_set():
            if not lease.ready:
                lease.ready = True
                self.reports.ready(lease)
            await lease.token.wait()
        if not self.job.in_order:
            return
        if self._turn < piece.turn or self._under_way == self._together:
            async with self._turns:
                await self._turns.wait_for(lambda: self._turn >= piece.turn and self._under_way < self._together)
        self._under_way += 1

    async def sending_the_last(self, piece: Piece) -> None:
        """The piece's last request goes out before anything else runs: in order, the next piece may follow it."""
        if self.job.in_order and self._together > 1:
            async with self._turns:
                self._turn = piece.turn + 1
                self._turns.notify_all()

    async def written(self, piece: Piece) -> None:
        """The piece is done with."""
        lease = piece.lease
        lease.left -= 1
        if self.job.in_order:
            async with self._turns:
                self._under_way -= 1
                self._turn = max(self._turn, piece.turn + 1)
                self._turns.notify_all()
        if lease.left == 0:
            self.reports.done(lease)
