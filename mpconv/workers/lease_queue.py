"""The leases a worker holds, cut into pieces of one buffer; its coroutines take those of the lowest lease first, and in
order before them those of a lease that may be written.

So a connection sees ascending offsets. In order, leases are written in the order in which their tokens came, and their
pieces ascending: one after another, or a few under way together where the connection keeps the order in which they are
sent. What a dead worker held may come late, when every coroutine already waits with a piece of a higher lease, whose
token comes only afterwards: then one more coroutine is called for.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import deque

from msgspec import Struct, field

from mpconv.model.extent import Extent, Kind
from mpconv.protocol.job import Job


class HeldLease(Struct, eq=False):
    """A lease as its worker sees it. `turn`: its first piece's place in the order of writing, from 0; None until it
    holds its token. `needs`, `parts` and `places`: as in Ready and Token. `sums`: of its blocks' digests, by region.
    """

    epoch: int
    extent: Extent
    token: asyncio.Event
    pieces: deque[Piece] = field(default_factory=deque)
    left: int = 0
    zeros: int = 0
    ready: bool = False
    turn: int | None = None
    needs: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sums: dict[int, int] = field(default_factory=dict)


class Piece(Struct, frozen=True, eq=False):
    """A buffer's worth of a lease, or zeros of any length. `number`: its place in its lease, from 0."""

    lease: HeldLease
    extent: Extent
    number: int


class Reports:
    """What is told to the worker; the worker sends it on."""

    def ready(self, lease: HeldLease) -> None:
        """The first piece is read and there is no token yet."""
        raise NotImplementedError

    def done(self, lease: HeldLease) -> None:
        """Every byte of the lease is written."""
        raise NotImplementedError

    def want_more(self) -> None:
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


class LeaseQueue:
    """What there is to do. `waiting`: pieces that nobody has taken yet. `together`: how many pieces may be written at a
    time in order.
    """

    def __init__(self, job: Job, reports: Reports, *, together: int = 1) -> None:
        self.job = job
        self.reports = reports
        self.waiting = 0
        self._together = together
        self._leases: list[HeldLease] = []  # those with pieces that nobody has taken, the lowest first
        self._taken: set[Piece] = set()
        self._coroutines = job.requests
        self._arrived = asyncio.Condition()
        self._turns_given = 0
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
            lease.pieces.append(Piece(lease, cut, len(lease.pieces)))
        lease.left = len(lease.pieces)
        if lease.token.is_set():
            self._give_turns(lease)
        async with self._arrived:
            bisect.insort(self._leases, lease, key=_start)
            self.waiting += lease.left
            self._arrived.notify(lease.left)

    async def next(self) -> Piece:
        """The next piece, once there is one."""
        async with self._arrived:
            while not self._leases:
                await self._arrived.wait()
            piece = self._take()
        self.reports.want_more()
        return piece

    def _take(self) -> Piece:
        lease = self._upcoming()
        piece = lease.pieces.popleft()
        if not lease.pieces:
            self._leases.remove(lease)
        self.waiting -= 1
        self._taken.add(piece)
        return piece

    def _upcoming(self) -> HeldLease:
        """In order, what may be written goes on: lower leases that came late get their tokens only when it is done."""
        if self.job.in_order:
            may_write = [lease for lease in self._leases if lease.token.is_set() and lease.turn is not None]
            if may_write:
                return min(may_write, key=_first_turn)
        return self._leases[0]

    def one_more(self) -> bool:
        """Whether one more coroutine must be started, for `next_below`: nobody would take up the lowest lease."""
        if len(self._taken) < self._coroutines or not self._passed_over():
            return False
        self._coroutines += 1
        return True

    def next_below(self) -> Piece | None:
        """The next piece, if it lies below all that were taken; otherwise the coroutine must end."""
        if not self._passed_over():
            self._coroutines -= 1
            return None
        piece = self._take()
        self.reports.want_more()
        return piece

    def _passed_over(self) -> bool:
        """Whether the lowest lease lies below every piece that was taken, all of which may wait for its bytes."""
        if not self.job.in_order or not self._leases:
            return False
        lowest = _start(self._leases[0])
        return all(lowest < _start(piece.lease) for piece in self._taken)

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
        if lease.turn is None:
            self._give_turns(lease)
        turn = _turn(piece)
        if self._turn < turn or self._under_way == self._together:
            async with self._turns:
                await self._turns.wait_for(lambda: self._turn >= turn and self._under_way < self._together)
        self._under_way += 1

    def _give_turns(self, lease: HeldLease) -> None:
        """It holds its token: its pieces come after those of the leases that got theirs before."""
        lease.turn = self._turns_given
        self._turns_given += lease.left

    async def sending_the_last(self, piece: Piece) -> None:
        """The piece's last request goes out before anything else runs: in order, the next piece may follow it."""
        if self.job.in_order and self._together > 1:
            async with self._turns:
                self._turn = _turn(piece) + 1
                self._turns.notify_all()

    async def written(self, piece: Piece) -> None:
        """The piece is done with."""
        self._taken.discard(piece)
        lease = piece.lease
        lease.left -= 1
        if self.job.in_order:
            async with self._turns:
                self._under_way -= 1
                self._turn = max(self._turn, _turn(piece) + 1)
                self._turns.notify_all()
        if lease.left == 0:
            self.reports.done(lease)


def _start(lease: HeldLease) -> int:
    return lease.extent.start


def _first_turn(lease: HeldLease) -> int:
    assert lease.turn is not None
    return lease.turn


def _turn(piece: Piece) -> int:
    """Its place in the order of writing; only once its lease holds its token."""
    assert piece.lease.turn is not None
    return piece.lease.turn + piece.number
