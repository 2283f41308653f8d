"""Leases: an extent granted to one worker, with an epoch and a deadline.

Epochs number the grants of a job and are never used twice, so an epoch names one lease for ever and a message
that carries an old one changes nothing. A lease may end badly (PROTOCOL.md, rules 9 and 16): without a commit token
its extent is free again; with one its write may still land, and it stays in doubt until its worker is known dead or
fenced. A lease that is done has left the book: flushes.py keeps what is not durable yet.
"""

from __future__ import annotations

import enum

from msgspec import Struct, field

from mpconv.model.errors import ProtocolError
from mpconv.model.extent import Extent


class LeaseState(enum.Enum):
    """Where a lease stands. LEASED has no token; COMMITTING may write; DONE is written; ENDED is free again."""

    LEASED = "leased"
    COMMITTING = "committing"
    DONE = "done"
    IN_DOUBT = "in doubt"
    ENDED = "ended"


TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.LEASED: frozenset({LeaseState.COMMITTING, LeaseState.ENDED}),
    LeaseState.COMMITTING: frozenset({LeaseState.DONE, LeaseState.IN_DOUBT, LeaseState.ENDED}),
    LeaseState.IN_DOUBT: frozenset({LeaseState.ENDED}),
    LeaseState.DONE: frozenset(),
    LeaseState.ENDED: frozenset(),
}


class IllegalTransition(ProtocolError):
    """A lease was asked to go where the table does not allow; the message tells the lease's story."""


class Lease(Struct, eq=False):
    """One grant. `deadline` is in the seconds of the caller's clock."""

    epoch: int
    extent: Extent
    worker: str
    deadline: float
    state: LeaseState = LeaseState.LEASED
    story: list[tuple[float, LeaseState]] = field(default_factory=list)

    def move(self, to: LeaseState, now: float) -> None:
        """Follow the table, or raise IllegalTransition and change nothing."""
        if to not in TRANSITIONS[self.state]:
            past = ", ".join(f"{state.value} at {when:.3f}" for when, state in self.story)
            raise IllegalTransition(
                f"lease {self.epoch} of {self.extent} at {self.worker}: {self.state.value} -> {to.value} ({past})"
            )
        self.state = to
        self.story.append((now, to))


class LeaseBook:
    """The open leases of one job: LEASED, COMMITTING and IN_DOUBT. Each lasts `duration` seconds unless renewed."""

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self.live: dict[int, Lease] = {}
        self._by_worker: dict[str, dict[int, Lease]] = {}
        self._last_epoch = 0

    def grant(self, extent: Extent, worker: str, now: float) -> Lease:
        """A new lease under a new epoch."""
        self._last_epoch += 1
        lease = Lease(self._last_epoch, extent, worker, now + self.duration)
        lease.story.append((now, LeaseState.LEASED))
        self.live[lease.epoch] = lease
        self._by_worker.setdefault(worker, {})[lease.epoch] = lease
        return lease

    def current(self, epoch: int, worker: str) -> Lease | None:
        """The lease that a message of `worker` may speak for; None for a stale epoch or somebody else's."""
        lease = self.live.get(epoch)
        if lease is None or lease.worker != worker or lease.state is LeaseState.IN_DOUBT:
            return None
        return lease

    def renew(self, worker: str, now: float) -> None:
        """A sign of life: the worker's open leases run for another `duration`. What expired stays expired."""
        for lease in self._by_worker.get(worker, {}).values():
            lease.deadline = now + self.duration

    def overdue(self, now: float) -> list[Lease]:
        """Leases whose deadline has passed and that are not in doubt yet."""
        return [
            lease for lease in self.live.values() if lease.deadline < now and lease.state is not LeaseState.IN_DOUBT
        ]

    def done(self, lease: Lease, now: float) -> None:
        """Written. IllegalTransition unless it holds its token; the epoch is stale from here on."""
        lease.move(LeaseState.DONE, now)
        self._forget(lease)

    def end(self, lease: Lease, now: float) -> None:
        """Free again: the epoch is stale from here on."""
        lease.move(LeaseState.ENDED, now)
        self._forget(lease)

    def of(self, worker: str) -> list[Lease]:
        """The worker's open leases."""
        return list(self._by_worker.get(worker, {}).values())

    def _forget(self, lease: Lease) -> None:
        del self.live[lease.epoch]
        of_worker = self._by_worker[lease.worker]
        del of_worker[lease.epoch]
        if not of_worker:
            del self._by_worker[lease.worker]
