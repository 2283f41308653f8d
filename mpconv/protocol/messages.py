"""The messages both sides exchange: typed and versioned. PROTOCOL.md says who may send what, and when. Pure."""

from __future__ import annotations

import msgspec

from mpconv.job import Job

VERSION = 1


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A worker's first message."""

    version: int
    pid: int


class Want(msgspec.Struct, frozen=True, tag="want"):
    """The worker can take `leases` more leases."""

    leases: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The lease's first buffer is read; the worker waits for its commit token."""

    job: int
    epoch: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The lease is written; `zeros` bytes of it were zero."""

    job: int
    epoch: int
    zeros: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A request failed for good; the fields are those of MpconvError."""

    job: int
    why: str
    operation: str
    image: str
    offset: int | None


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """A heartbeat: renews the worker's leases."""


class FlushDone(msgspec.Struct, frozen=True, tag="flushed"):
    """All that the worker wrote for the job is durable."""

    job: int


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The job that the leases after this message belong to."""

    job: Job


class LeaseGrant(msgspec.Struct, frozen=True, tag="lease"):
    """An extent to copy. With `token` it may be written at once."""

    job: int
    epoch: int
    start: int
    length: int
    kind: int
    token: bool


class Token(msgspec.Struct, frozen=True, tag="token"):
    """The lease may be written now."""

    job: int
    epoch: int


class Flush(msgspec.Struct, frozen=True, tag="flush"):
    """Make durable what was written for the job."""

    job: int


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """No more work: close the connections and end."""


FromWorker = Hello | Want | Ready | Done | Failed | Alive | FlushDone
FromCoordinator = Open | LeaseGrant | Token | Flush | Bye
