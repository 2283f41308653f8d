"""CoordinatorState: one job's copy as a state machine, `handle(event, now) -> [action]`.

The shell feeds events (from links, clocks and processes) and runs the actions it gets back. All state changes
happen in here. Workers ask for leases; extents that need no write (zeros on a target that reads as zeros) are
counted at once and never leased. The job finishes when every byte is written and every worker that wrote has
flushed its own connection. It never finishes with a lease in doubt.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

from mpconv.core.cursor import Cursor
from mpconv.core.leases import Lease, LeaseBook, LeaseState
from mpconv.core.sequence import WriteSequence
from mpconv.extent import Extent, Kind
from mpconv.units import SECTOR, GiB, MiB, align_up

LEASE_SECONDS = 30.0
ZERO_LEASE = GiB


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusFound:
    """Block status: the next extents of the source, in order."""

    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class LeaseWanted:
    """The worker can take one more lease."""

    worker: str


@dataclass(frozen=True, slots=True)
class TokenWanted:
    """The worker has read the lease and waits for its turn to write."""

    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseDone:
    """The lease is written; `zeros` of its bytes were zero."""

    worker: str
    epoch: int
    zeros: int


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """A heartbeat: renews the worker's open leases."""

    worker: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything the worker wrote before it was asked to flush is durable."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerDead:
    """The worker is reaped or fenced: none of its writes can land any more."""

    worker: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = StatusFound | LeaseWanted | TokenWanted | LeaseDone | SignOfLife | Flushed | WorkerDead | Tick


# --- actions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """Send the lease to its worker; with `token` it may write at once."""

    worker: str
    epoch: int
    extent: Extent
    token: bool


@dataclass(frozen=True, slots=True)
class GiveToken:
    """The worker may write this lease now."""

    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class AskFlush:
    """The worker makes durable what it wrote."""

    worker: str


@dataclass(frozen=True, slots=True)
class LostContact:
    """The worker let a lease expire; find out whether it is dead."""

    worker: str
    in_doubt: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """Every byte is written and flushed."""


Action = Grant | GiveToken | AskFlush | LostContact | Finish


class CoordinatorState:
    """One job. `workers` is how many are expected: it shapes the size of leases, nothing else."""

    def __init__(
        self,
        size: int,
        *,
        in_order: bool,
        zero_initialised: bool,
        durable: bool = True,
        workers: int = 1,
        lease_size: int = 16 * MiB,
        buffer_size: int = 2 * MiB,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.size = size
        self.zero_initialised = zero_initialised
        self.durable = durable
        self.workers = max(1, workers)
        self.lease_size = lease_size
        self.buffer_size = buffer_size
        self.cursor = Cursor(size)
        self.leases = LeaseBook(lease_seconds)
        self.sequence = WriteSequence(in_order=in_order)
        self.bytes_done = 0
        self.bytes_zero = 0
        self.stale = 0
        self.finished = False
        self._wanting: deque[str] = deque()
        self._flushing: set[str] | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; the actions are to be carried out in order."""
        if self.finished:
            return []
        actions: list[Action] = []
        match event:
            case StatusFound(extents):
                for extent in extents:
                    self.cursor.feed(extent)
            case LeaseWanted(worker):
                self._wanting.append(worker)
            case TokenWanted(worker, epoch):
                lease = self._lease(epoch, worker)
                if lease is not None:
                    lease.ready = True
            case LeaseDone(worker, epoch, zeros):
                lease = self._lease(epoch, worker)
                if lease is not None:
                    self._done(lease, zeros, now)
            case SignOfLife(worker):
                self.leases.renew(worker, now)
            case Flushed(worker):
                self._flushed(worker, now)
            case WorkerDead(worker):
                self._dead(worker, now)
            case Tick():
                actions += self._expire(now)
        actions += self._grant(now)
        actions += self._tokens(now)
        actions += self._finish()
        return actions

    def _lease(self, epoch: int, worker: str) -> Lease | None:
        lease = self.leases.current(epoch, worker)
        if lease is None:
            self.stale += 1
        return lease

    def _done(self, lease: Lease, zeros: int, now: float) -> None:
        lease.move(LeaseState.DONE, now)
        self.sequence.release(lease.epoch)
        self.sequence.written(lease.extent)
        self.bytes_done += lease.extent.length
        self.bytes_zero += zeros
        if not self.durable:
            self.leases.end(lease, now)

    def _flushed(self, worker: str, now: float) -> None:
        if self._flushing is None or worker not in self._flushing:
            return
        self._flushing.discard(worker)
        for lease in self.leases.of(worker):
            if lease.state is LeaseState.DONE:
                self.leases.end(lease, now)

    def _dead(self, worker: str, now: float) -> None:
        for lease in self.leases.of(worker):
            if lease.state is LeaseState.DONE:
                self.bytes_done -= lease.extent.length
            self.sequence.release(lease.epoch)
            self.leases.end(lease, now)
            self.cursor.give_back(lease.extent)
        self._wanting = deque(name for name in self._wanting if name != worker)
        if self._flushing is not None:
            self._flushing = None

    def _expire(self, now: float) -> list[Action]:
        doubtful: dict[str, bool] = {}
        for lease in self.leases.overdue(now):
            in_doubt = lease.state is LeaseState.COMMITTING
            doubtful[lease.worker] = doubtful.get(lease.worker, False) or in_doubt
            if in_doubt:
                lease.move(LeaseState.IN_DOUBT, now)
            else:
                self.leases.end(lease, now)
                self.cursor.give_back(lease.extent)
        return [LostContact(worker, in_doubt) for worker, in_doubt in doubtful.items()]

    def _limit(self, extent: Extent) -> int:
        """Large leases out of order, smaller near the end so that no worker is waited for."""
        if extent.kind is not Kind.DATA:
            return ZERO_LEASE
        left = self.size - self.bytes_done
        share = align_up(max(1, left // (4 * self.workers)), self.buffer_size)
        return max(self.buffer_size, min(self.lease_size, share))

    def _grant(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while True:
            if not self._wanting and not self._skippable():
                return actions
            extent = self.cursor.take(self._limit, max(SECTOR, self.buffer_size))
            if extent is None:
                return actions
            if self.zero_initialised and extent.kind is not Kind.DATA:
                self.sequence.written(extent)
                self.bytes_done += extent.length
                self.bytes_zero += extent.length
                continue
            worker = self._wanting.popleft()
            lease = self.leases.grant(extent, worker, now)
            token = not self.sequence.in_order
            if token:
                lease.move(LeaseState.COMMITTING, now)
            actions.append(Grant(worker, lease.epoch, extent, token))

    def _skippable(self) -> bool:
        upcoming = self.cursor.extents()[:1] if self.zero_initialised else []
        return bool(upcoming) and upcoming[0].kind is not Kind.DATA

    def _tokens(self, now: float) -> list[Action]:
        if not self.sequence.in_order:
            return []
        for lease in self.leases.live.values():
            if lease.ready and lease.state is LeaseState.LEASED and self.sequence.may_commit(lease.epoch, lease.extent):
                self.sequence.commit(lease.epoch)
                lease.move(LeaseState.COMMITTING, now)
                return [GiveToken(lease.worker, lease.epoch)]
        return []

    def _finish(self) -> list[Action]:
        if not self.cursor.exhausted:
            return []
        open_leases = [lease for lease in self.leases.live.values() if lease.state is not LeaseState.DONE]
        if open_leases:
            return []
        if self._flushing is None:
            self._flushing = {lease.worker for lease in self.leases.live.values()}
            if self._flushing:
                return [AskFlush(worker) for worker in sorted(self._flushing)]
        if self._flushing:
            return []
        self.finished = True
        return [Finish()]

    def check_invariants(self) -> None:
        """Every byte is in exactly one place; raises AssertionError otherwise. Tests call it after every event."""
        places = [(e.start, e.end) for e in self.cursor.extents()]
        places += [(lease.extent.start, lease.extent.end) for lease in self.leases.live.values()]
        places.sort()
        for (_, end), (start, _) in itertools.pairwise(places):
            assert end <= start, f"bytes {start} to {end} are in two places"
        open_bytes = sum(
            lease.extent.length for lease in self.leases.live.values() if lease.state is not LeaseState.DONE
        )
        unfed = self.size - self.cursor.fed
        assert self.bytes_done + open_bytes + self.cursor.waiting + unfed == self.size
        committing = [x for x in self.leases.live.values() if x.state is LeaseState.COMMITTING]
        assert not self.sequence.in_order or len(committing) <= 1
        if self.finished:
            assert self.bytes_done == self.size and not self.leases.live
