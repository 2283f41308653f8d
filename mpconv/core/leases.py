"""Leases: an extent granted to one worker, with an epoch and a deadline.

Epochs number the grants of a job and are never used twice, so an epoch names one lease for ever and a message
that carries an old one changes nothing. A lease that ends badly follows rule 2 of the design: without a commit
token its extent is free again; with one its write may still land, and it stays in doubt until its worker is
known dead or fenced.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mpconv.extent import Extent


class LeaseState(enum.Enum):
    """Where a lease stands."""

    LEASED = "leased"
    COMMITTING = "committing"
    DONE = "done"
    IN_DOUBT = "in doubt"
    ENDED = "ended"


TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.LEASED: frozenset({LeaseState.COMMITTING, LeaseState.ENDED}),
    LeaseState.COMMITTING: frozenset({LeaseState.DONE, LeaseState.IN_DOUBT, LeaseState.ENDED}),
    LeaseState.IN_DOUBT: frozenset({LeaseState.ENDED}),
    LeaseState.DONE: frozenset({LeaseState.ENDED}),
    LeaseState.ENDED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A lease was asked to go where the table does not allow; the message tells the lease's story."""


@dataclass(slots=True, eq=False)
class Lease:
    """One grant. DONE means written; ENDED means durable or free again."""

    epoch: int
    extent: Extent
    worker: str
    deadline: float
    state: LeaseState = LeaseState.LEASED
    ready: bool = False
    story: list[tuple[float, LeaseState]] = field(default_factory=list)

    def move(self, to: LeaseState, now: float) -> None:
        """Follow the table, or raise IllegalTransition."""
        if to not in TRANSITIONS[self.state]:
            past = ", ".join(f"{state.value} at {when:.3f}" for when, state in self.story)
            raise IllegalTransition(
                f"lease {self.epoch} of {self.extent} at {self.worker}: {self.state.value} -> {to.value} ({past})"
            )
        self.state = to
        self.story.append((now, to))


class LeaseBook:
    """All leases of one job that are not ended."""

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self.live: dict[int, Lease] = {}
        self._last_epoch = 0

    def grant(self, extent: Extent, worker: str, now: float) -> Lease:
        """A new lease under a new epoch."""
        self._last_epoch += 1
        lease = Lease(self._last_epoch, extent, worker, now + self.duration)
        lease.story.append((now, LeaseState.LEASED))
        self.live[lease.epoch] = lease
        return lease

    def current(self, epoch: int, worker: str) -> Lease | None:
        """The lease that a message of `worker` may speak for; None for a stale epoch or somebody else's."""
        lease = self.live.get(epoch)
        if lease is None or lease.worker != worker:
            return None
        return lease if lease.state in (LeaseState.LEASED, LeaseState.COMMITTING) else None

    def renew(self, worker: str, now: float) -> None:
        """A sign of life: the worker's open leases run for another `duration`. What expired stays expired."""
        for lease in self.live.values():
            if lease.worker == worker and lease.state in (LeaseState.LEASED, LeaseState.COMMITTING):
                lease.deadline = now + self.duration

    def overdue(self, now: float) -> list[Lease]:
        """Open leases whose deadline has passed."""
        return [
            lease
            for lease in self.live.values()
            if lease.deadline < now and lease.state in (LeaseState.LEASED, LeaseState.COMMITTING)
        ]

    def end(self, lease: Lease, now: float) -> None:
        """Durable, or free again: the epoch is stale from here on."""
        lease.move(LeaseState.ENDED, now)
        del self.live[lease.epoch]

    def of(self, worker: str) -> list[Lease]:
        """The worker's leases that are not ended."""
        return [lease for lease in self.live.values() if lease.worker == worker]
