"""CoordinatorState: one job's copy as a state machine, `handle(event, now) -> [action]`.

The shell feeds events (from links, clocks and processes) and runs the actions it gets back. All state changes
happen in here. Workers ask for leases; extents that need no write (zeros on a target that reads as zeros) are
counted at once and never leased. The job finishes when every byte is written and every worker that wrote has
flushed its own connection. It never finishes with a lease in doubt. No event costs more than the open leases do,
however large the disk is; only to lose a worker's writes costs what they are, and to make them durable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from typing import assert_never

from mpconv.core.cursor import Cursor
from mpconv.core.digests import Sums
from mpconv.core.events import (
    Action,
    AskFlush,
    Durable,
    Event,
    Finish,
    Flushed,
    GiveToken,
    Grant,
    LeaseDone,
    LeaseWanted,
    Leaving,
    LetGo,
    LostContact,
    Passed,
    RateLimited,
    Restarted,
    SignOfLife,
    StatusFound,
    Stop,
    Stopped,
    Tick,
    TokenWanted,
    Undone,
    WorkerDead,
    WorkersExpected,
)
from mpconv.core.flushes import FlushBook
from mpconv.core.leases import Lease, LeaseBook, LeaseState
from mpconv.core.rate import Rate
from mpconv.core.sequence import Order, WriteSequence
from mpconv.model.digest import WIDTH, regions
from mpconv.model.errors import ProtocolError
from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import Ranges
from mpconv.model.units import SECTOR, GiB, MiB, align_down, align_up

LEASE_SECONDS = 30.0
ZERO_LEASE = GiB


class CoordinatorState:
    """One job of `size` bytes. `workers` is how many are expected: it shapes the size of leases, nothing else.

    `durable`: what is written counts only when its worker has flushed; otherwise as soon as it is written.
    `zeros_from`: the byte from which on zeros are there already, whatever is below; None: nothing is said.
    `writes_zeros`: zeros are written as data is. `leaves_unallocated`: what the source leaves to its backing file is
    left to the target's. `rate`: bytes written per second at most, 0 for no limit. `seams`: where one source image ends
    and the next begins. `done`: what an earlier run made durable, `zeros_done` bytes of it zero.
    `digests_done`: the sums of it. `checkpoint_seconds`:
    how often whoever wrote is asked to flush before the end; 0 for never. `settle_seconds`: how long after a worker was
    lost that might write the job does not end, because what it sent may still lie in a socket of the server's.
    `needless`: bytes known so far that need no work, beside `done`; `passed`: those of them that are counted already.
    `wake_at`: when a Tick is wanted, since the rate holds the next lease back; None: no need.
    `lease_size` and `buffer_size` in bytes, `lease_seconds` and every `now` in seconds of one clock.
    """

    def __init__(
        self,
        size: int,
        *,
        order: Order,
        zero_initialised: bool,
        zeros_from: int | None = None,
        durable: bool = True,
        writes_zeros: bool = False,
        leaves_unallocated: bool = False,
        rate: int = 0,
        seams: Collection[int] = (),
        done: Ranges | None = None,
        zeros_done: int = 0,
        digests_done: Sums | None = None,
        checkpoint_seconds: float = 0,
        settle_seconds: float = 0,
        workers: int = 1,
        lease_size: int = 16 * MiB,
        buffer_size: int = 2 * MiB,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.size = size
        self.zero_initialised = zero_initialised
        self.zeros_from = size if zeros_from is None else zeros_from
        self.durable = durable
        self.workers = max(1, workers)
        self.lease_size = lease_size
        self.buffer_size = buffer_size
        self.writes_zeros = writes_zeros
        self.leaves_unallocated = leaves_unallocated
        self.rate = Rate(rate) if rate else None
        self.wake_at: float | None = None
        self.cursor = Cursor(size, [*seams, self.zeros_from])
        self.leases = LeaseBook(lease_seconds)
        self.flushes = FlushBook(lease_seconds)
        self.digests = digests_done or Sums()
        self.sequence = WriteSequence(order)
        self.before = done or Ranges()
        self.bytes_done = sum(end - start for start, end in self.before)
        self.bytes_zero = zeros_done
        self.needless = self.passed = 0
        self.checkpoint_seconds = checkpoint_seconds if durable else 0
        self.settle_seconds = settle_seconds
        self.stale = 0
        self.stopping = False
        self.finished = False
        self._checkpoint_at: float | None = None
        self._settled_at = -math.inf
        self._wanting: deque[str] = deque()
        self._dead: set[str] = set()
        self._leaving: set[str] = set()
        self._seen_watermark = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; the actions are to be carried out in order."""
        if self.finished:
            return []
        actions: list[Action] = []
        self.wake_at = None
        match event:
            case LeaseWanted(worker):
                if worker not in self._dead and worker not in self._leaving:
                    self._wanting.append(worker)
            case TokenWanted(worker, epoch):
                lease = self._lease(epoch, worker)
                if lease is not None and lease.state is LeaseState.LEASED:
                    self.sequence.ready(epoch, lease.extent)
            case LeaseDone(worker, epoch, zeros, digests):
                lease = self._lease(epoch, worker)
                if lease is not None:
                    self._done(lease, zeros, digests, now)
            case SignOfLife(worker):
                self.leases.renew(worker, now)
                self.flushes.renew(worker, now)
            case StatusFound(extents):
                for extent in extents:
                    self._feed(extent)
            case Flushed(worker):
                batch = self.flushes.flushed(worker)
                if batch is not None:
                    actions.append(Durable(tuple(batch.extents()), batch.zeros, tuple(batch.digests)))
            case WorkerDead(worker):
                actions += self._lose(worker, now)
                self._dead.add(worker)
                self._leaving.discard(worker)
            case Restarted(worker):
                actions += self._lose(worker, now)
            case Leaving(worker):
                self._leave(worker, now)
            case WorkersExpected(more):
                self.workers = max(1, self.workers + more)
            case RateLimited(per_second, refunds):
                self._limit_rate(per_second, refunds)
            case Stop():
                self._stop(now)
            case Tick():
                actions += self._expire(now)
                actions += self._checkpoint(now)
            case _:
                assert_never(event)
        self._grant(actions, now)
        self._give_token(actions, now)
        self._let_go(actions, now)
        self._finish(actions, now)
        return actions

    def _limit_rate(self, per_second: int, refunds: bool) -> None:
        if not per_second:
            self.rate = None
        elif self.rate is None:
            self.rate = Rate(per_second, refunds=refunds)
        else:
            self.rate.per_second, self.rate.refunds = per_second, refunds

    def _lease(self, epoch: int, worker: str) -> Lease | None:
        lease = self.leases.current(epoch, worker)
        if lease is None:
            self.stale += 1
        return lease

    def _done(self, lease: Lease, zeros: int, digests: bytes, now: float) -> None:
        extent = lease.extent
        if not 0 <= zeros <= extent.length:
            raise ProtocolError(f"{lease.worker} found {zeros} bytes of zeros in {extent}")
        if len(digests) not in (0, WIDTH * len(regions(extent.start, extent.length))):
            raise ProtocolError(f"{lease.worker} sent {len(digests)} bytes of digests of {extent}")
        self.leases.done(lease, now)
        self.sequence.release(lease.epoch)
        self.sequence.written(extent)
        self.digests.add(extent.start, digests)
        self.bytes_done += extent.length
        self.bytes_zero += zeros
        if self.rate is not None and self.zero_initialised:
            self.rate.give_back(zeros)
        if self.durable:
            self.flushes.wrote(lease.worker, extent, zeros, digests)

    def _lose(self, worker: str, now: float) -> list[Action]:
        for lease in self.leases.of(worker):
            if lease.state is not LeaseState.LEASED:
                self._settled_at = now + self.settle_seconds
            self._take_back(lease, now)
        undone: list[Action] = []
        for batch in self.flushes.lose(worker):
            self.bytes_done -= batch.bytes
            self.bytes_zero -= batch.zeros
            for start, digests in batch.digests:
                self.digests.take_back(start, digests)
            extents = tuple(batch.extents())
            for extent in extents:
                self.cursor.give_back(extent)
            undone.append(Undone(extents))
        self._wanting = deque(name for name in self._wanting if name != worker)
        return undone

    def _feed(self, extent: Extent) -> None:
        """What an earlier run finished is passed over; its bytes were counted from the beginning."""
        at = extent.start
        for start, end in self.before.within(extent.start, extent.end):
            if at < start:
                self._ahead(Extent(at, start - at, extent.kind))
            self.cursor.skip(end)
            self.sequence.written(Extent(start, end - start))
            at = end
        if at < extent.end:
            self._ahead(Extent(at, extent.end - at, extent.kind))

    def _ahead(self, extent: Extent) -> None:
        if extent.start < self.zeros_from < extent.end:
            extent, tail = extent.split(self.zeros_from)
            self._known(extent)
            extent = tail
        self._known(extent)

    def _known(self, extent: Extent) -> None:
        self.cursor.feed(extent)
        if self._skips(extent):
            self.needless += extent.length

    def _stop(self, now: float) -> None:
        """Who waits for its turn would wait for bytes that nobody writes any more."""
        self.stopping = True
        for lease in [lease for lease in self.leases.live.values() if lease.state is LeaseState.LEASED]:
            self._take_back(lease, now)

    def _leave(self, worker: str, now: float) -> None:
        if worker in self._dead:
            return
        self._leaving.add(worker)
        self._wanting = deque(name for name in self._wanting if name != worker)
        for lease in self.leases.of(worker):
            if lease.state is LeaseState.LEASED:
                self._take_back(lease, now)

    def _let_go(self, actions: list[Action], now: float) -> None:
        for worker in sorted(self._leaving):
            if self.leases.of(worker):
                continue
            actions += [AskFlush(name) for name in self.flushes.ask(now, worker)]
            if not self.flushes.owes(worker):
                self._leaving.discard(worker)
                self._dead.add(worker)
                actions.append(LetGo(worker))

    def _checkpoint(self, now: float) -> list[Action]:
        if not self.checkpoint_seconds:
            return []
        if self._checkpoint_at is None:
            self._checkpoint_at = now + self.checkpoint_seconds
        if now < self._checkpoint_at:
            return []
        self._checkpoint_at = now + self.checkpoint_seconds
        return [AskFlush(worker) for worker in self.flushes.ask(now)]

    def _take_back(self, lease: Lease, now: float) -> None:
        self.sequence.release(lease.epoch)
        self.leases.end(lease, now)
        self.cursor.give_back(lease.extent)

    def _expire(self, now: float) -> list[Action]:
        doubtful = dict.fromkeys(self.flushes.overdue(now), False)
        for lease in self.leases.overdue(now):
            in_doubt = lease.state is LeaseState.COMMITTING
            doubtful[lease.worker] = doubtful.get(lease.worker, False) or in_doubt
            if in_doubt:
                lease.move(LeaseState.IN_DOUBT, now)
            else:
                self._take_back(lease, now)
        return [LostContact(worker, in_doubt) for worker, in_doubt in doubtful.items()]

    def _skips(self, extent: Extent) -> bool:
        """Zeros on a target that reads as zeros need no write, nor does what is left to its backing file."""
        if extent.kind is Kind.UNALLOCATED and self.leaves_unallocated:
            return True
        there = self.zero_initialised or extent.start >= self.zeros_from
        return there and extent.kind is not Kind.DATA

    def _limit(self, extent: Extent) -> int:
        """Large leases, smaller near the end so that no worker is waited for; single buffers where the rate counts."""
        if self._skips(extent):
            return extent.length
        if extent.kind is not Kind.DATA and not self.writes_zeros:
            if self.rate is None:
                return ZERO_LEASE
            return max(self.buffer_size, align_down(min(ZERO_LEASE, self.rate.per_second), self.buffer_size))
        if self.rate is not None:
            return self.buffer_size
        left = self.size - self.bytes_done
        share = align_up(max(1, left // (4 * self.workers)), self.buffer_size)
        return max(self.buffer_size, min(self.lease_size, share))

    def _grant(self, actions: list[Action], now: float) -> None:
        if self.stopping:
            return
        while (upcoming := self.cursor.peek()) is not None:
            skipped = self._skips(upcoming)
            if not skipped and not self._wanting:
                self._wanting += self._stuck(upcoming)
            if not skipped and (not self._wanting or self._too_soon(upcoming, now)):
                return
            extent = self.cursor.take(self._limit, max(SECTOR, self.buffer_size))
            assert extent is not None
            if skipped:
                self.sequence.written(extent)
                self.bytes_done += extent.length
                self.bytes_zero += extent.length
                self.passed += extent.length
                actions.append(Passed(extent))
                continue
            if self.rate is not None:
                self.rate.pay(extent.length, now)
            worker = self._wanting.popleft()
            lease = self.leases.grant(extent, worker, now)
            token = self.sequence.order is Order.FREE
            if token:
                lease.move(LeaseState.COMMITTING, now)
            actions.append(Grant(worker, lease.epoch, extent, token))

    def _stuck(self, upcoming: Extent) -> list[str]:
        """In order, when what a lost worker held lies below all that is leased, those that wait want nothing
        more: one of them gets it unasked. Rule 13 of the protocol has it written.
        """
        if self.sequence.order is not Order.ASCENDING or self.sequence.committing is not None:
            return []
        waiting = min(self.leases.live.values(), key=lambda lease: lease.extent.start, default=None)
        if waiting is None or waiting.extent.start < upcoming.start or waiting.worker in self._leaving:
            return []
        return [waiting.worker]

    def _too_soon(self, upcoming: Extent, now: float) -> bool:
        """Whether the rate forbids the next lease for now; then `wake_at` says until when."""
        if self.rate is None:
            return False
        ready_at = self.rate.ready_at(min(upcoming.length, self._limit(upcoming)), now)
        self.wake_at = ready_at if ready_at > now else None
        return self.wake_at is not None

    def _give_token(self, actions: list[Action], now: float) -> None:
        while (epoch := self.sequence.next()) is not None:
            lease = self.leases.live[epoch]
            lease.move(LeaseState.COMMITTING, now)
            actions.append(GiveToken(lease.worker, epoch))

    def _finish(self, actions: list[Action], now: float) -> None:
        if self.leases.live or not (self.stopping or self.cursor.exhausted):
            return
        actions += [AskFlush(worker) for worker in self.flushes.ask(now)]
        if self.flushes.all_durable and now >= self._settled_at:
            self.finished = True
            actions.append(Finish() if self.cursor.exhausted else Stopped())

    def check_invariants(self) -> None:
        """Every byte is in exactly one place; raises AssertionError otherwise. Tests call it after every event.

        A byte is not fed yet, known to the cursor, in an open lease, written but not durable, or settled.
        """
        unflushed = [extent for batch in self.flushes.batches() for extent in batch.extents()]
        unflushed_bytes = sum(batch.bytes for batch in self.flushes.batches())
        assert unflushed_bytes == sum(extent.length for extent in unflushed)
        places = [*self.cursor.extents(), *(lease.extent for lease in self.leases.live.values()), *unflushed]
        places.sort(key=lambda extent: extent.start)
        settled = 0
        at = 0
        for extent in [*places, None]:
            start = self.cursor.fed if extent is None else extent.start
            assert at <= start, f"bytes {start} to {at} are in two places"
            assert self.sequence.was_written(at, start), f"bytes {at} to {start} are nowhere and not written"
            settled += start - at
            at = start if extent is None else extent.end
        later = sum(end - start for start, end in self.before.within(self.cursor.fed, self.size))
        assert self.bytes_done == settled + unflushed_bytes + later
        assert 0 <= self.bytes_zero <= self.bytes_done
        for extent in unflushed:
            assert self.sequence.was_written(extent.start, extent.end), f"{extent} is done and not written"
        self._check_order()
        if self.finished:
            assert not self.leases.live and not unflushed
            assert self.stopping or self.bytes_done == self.size == settled

    def _check_order(self) -> None:
        """The watermark never moves back. Ascending, tokens are given one at a time and never above it."""
        assert self._seen_watermark <= self.sequence.watermark
        self._seen_watermark = self.sequence.watermark
        may_write = [x for x in self.leases.live.values() if x.state is not LeaseState.LEASED]
        if self.sequence.order is Order.ASCENDING:
            assert [lease.epoch for lease in may_write] == [x for x in [self.sequence.committing] if x is not None]
            assert all(lease.extent.start <= self.sequence.watermark for lease in may_write)
        elif self.sequence.order is Order.FREE:
            assert len(may_write) == len(self.leases.live)
        elif self.sequence.order is Order.FOLLOWING:
            assert all(lease.extent.start <= self.sequence.reaches for lease in may_write)
