"""What comes into the state machine of a job, and what it asks the shell to do."""

from __future__ import annotations

from msgspec import Struct

from mpconv.model.extent import Extent

# --- events ---------------------------------------------------------------------------------------------------


class StatusFound(Struct, frozen=True):
    """Block status: the next extents of the source, in order."""

    extents: tuple[Extent, ...]


class LeaseWanted(Struct, frozen=True):
    """The worker can take one more lease. What a dead worker wants is passed over."""

    worker: str


class TokenWanted(Struct, frozen=True):
    """The worker has read the lease and waits for its turn to write."""

    worker: str
    epoch: int


class LeaseDone(Struct, frozen=True):
    """The lease is written; `zeros` of its bytes were zero. `digests`: a sum for each region that it touches, as
    mpconv/model/digest.py packs them. IllegalTransition when it holds no token.
    """

    worker: str
    epoch: int
    zeros: int
    digests: bytes = b""


class SignOfLife(Struct, frozen=True):
    """A heartbeat: renews the worker's open leases and its flush."""

    worker: str


class Flushed(Struct, frozen=True):
    """Everything the worker had reported done when it was asked to flush is durable."""

    worker: str


class WorkerDead(Struct, frozen=True):
    """The worker is reaped or fenced: none of its writes can land any more. Its name never comes back."""

    worker: str


class Restarted(Struct, frozen=True):
    """The worker lost its connection to a target and begins anew: it holds no lease any more, and what it wrote and did
    not flush counts for nothing."""

    worker: str


class Leaving(Struct, frozen=True):
    """The worker wants no more leases: what it may write already it writes and makes durable, then it is let go."""

    worker: str


class WorkersExpected(Struct, frozen=True):
    """So many workers more than before will want leases, or fewer: it shapes the size of leases, nothing else."""

    more: int


class RateLimited(Struct, frozen=True):
    """From now on so many bytes a second are written at most, 0 for no limit. `refunds`: as Rate's."""

    per_second: int
    refunds: bool


class Stop(Struct, frozen=True):
    """No more leases: what may be written already is, and made durable."""


class Tick(Struct, frozen=True):
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
    | WorkersExpected
    | RateLimited
    | Stop
    | Tick
)


# --- actions --------------------------------------------------------------------------------------------------


class Grant(Struct, frozen=True):
    """Send the lease to its worker; with `token` it may write at once."""

    worker: str
    epoch: int
    extent: Extent
    token: bool


class GiveToken(Struct, frozen=True):
    """The worker may write this lease now."""

    worker: str
    epoch: int


class Passed(Struct, frozen=True):
    """Nobody writes this extent: the target reads as zeros there, or leaves it to its backing file."""

    extent: Extent


class AskFlush(Struct, frozen=True):
    """The worker makes durable what it wrote."""

    worker: str


class Durable(Struct, frozen=True):
    """A flush is done: these extents, `zeros` bytes of them zero, are on the target for good. `digests`: packed sums
    of them, and the byte where each begins.
    """

    extents: tuple[Extent, ...]
    zeros: int
    digests: tuple[tuple[int, bytes], ...] = ()


class Undone(Struct, frozen=True):
    """A worker was lost before it flushed these extents: they count as written no more, and are done again."""

    extents: tuple[Extent, ...]


class LostContact(Struct, frozen=True):
    """The worker let a lease expire, or its flush; find out whether it is dead. `in_doubt`: it may still write."""

    worker: str
    in_doubt: bool


class LetGo(Struct, frozen=True):
    """The worker that was leaving holds nothing any more, and all that it wrote is durable."""

    worker: str


class Finish(Struct, frozen=True):
    """Every byte is written and flushed."""


class Stopped(Struct, frozen=True):
    """After Stop: nothing is being written any more, and what was is flushed."""


Action = Grant | GiveToken | Passed | AskFlush | Durable | Undone | LostContact | LetGo | Finish | Stopped
