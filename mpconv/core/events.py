"""What comes into the state machine of a job, and what it asks the shell to do."""

from __future__ import annotations

from dataclasses import dataclass

from mpconv.extent import Extent

# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusFound:
    """Block status: the next extents of the source, in order."""

    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class LeaseWanted:
    """The worker can take one more lease. What a dead worker wants is passed over."""

    worker: str


@dataclass(frozen=True, slots=True)
class TokenWanted:
    """The worker has read the lease and waits for its turn to write."""

    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseDone:
    """The lease is written; `zeros` of its bytes were zero. `digests`: a sum for each region that it touches, as
    mpconv/digest.py packs them. IllegalTransition when it holds no token.
    """

    worker: str
    epoch: int
    zeros: int
    digests: bytes = b""


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """A heartbeat: renews the worker's open leases and its flush."""

    worker: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything the worker had reported done when it was asked to flush is durable."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerDead:
    """The worker is reaped or fenced: none of its writes can land any more. Its name never comes back."""

    worker: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """The worker lost its connection to a target and begins anew: it holds no lease any more, and what it wrote and did
    not flush counts for nothing."""

    worker: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker wants no more leases: what it may write already it writes and makes durable, then it is let go."""

    worker: str


@dataclass(frozen=True, slots=True)
class Stop:
    """No more leases: what may be written already is, and made durable."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    StatusFound
    | LeaseWanted
    | TokenWanted
    | LeaseDone
    | SignOfLife
    | Flushed
    | WorkerDead
    | Restarted
    | Leaving
    | Stop
    | Tick
)


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
class Passed:
    """Nobody writes this extent: the target reads as zeros there, or leaves it to its backing file."""

    extent: Extent


@dataclass(frozen=True, slots=True)
class AskFlush:
    """The worker makes durable what it wrote."""

    worker: str


@dataclass(frozen=True, slots=True)
class Durable:
    """A flush is done: these extents, `zeros` bytes of them zero, are on the target for good. `digests`: packed sums
    of them, and the byte where each begins.
    """

    extents: tuple[Extent, ...]
    zeros: int
    digests: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class LostContact:
    """The worker let a lease expire, or its flush; find out whether it is dead. `in_doubt`: it may still write."""

    worker: str
    in_doubt: bool


@dataclass(frozen=True, slots=True)
class LetGo:
    """The worker that was leaving holds nothing any more, and all that it wrote is durable."""

    worker: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Every byte is written and flushed."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """After Stop: nothing is being written any more, and what was is flushed."""


Action = Grant | GiveToken | Passed | AskFlush | Durable | LostContact | LetGo | Finish | Stopped
