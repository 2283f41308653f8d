"""The messages both sides exchange: typed and versioned. PROTOCOL.md says who may send what, and when. Pure.

The bounds are checked where a message is decoded: what a peer sends is hostile until then.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from mpconv.model.extent import Kind
from mpconv.protocol.job import Job

VERSION = 7
MAX_WANT = 64
MAX_RANGES = 4096
MAX_CLUSTERS = 4096
"""Of one lease: 2 MiB in the smallest clusters."""
MAX_DIGESTS = 65536
"""Bytes of one lease's digests: 8 GiB of data."""
MAX_DEAD = 64
MAX_FENCE = 25.0
"""Less than a lease lasts, so that a lease that expires is one of a worker that has stopped."""

_LARGEST = (1 << 63) - 1
_LAST_KIND = int(max(Kind))

Number = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
"""A job's id, a lease's epoch, a process's id."""
Bytes = Number
"""A size or an offset."""
PerCluster = Annotated[list[Bytes], msgspec.Meta(max_length=MAX_CLUSTERS)]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A worker's first message; and again when it begins anew: it holds no lease, and what it did not flush is lost.

    Of a worker on another host, `host`: who started it; `number`: its number there; `dead`: numbers of those that its
    host has reaped.
    """

    version: Number
    pid: Number
    host: Annotated[str, msgspec.Meta(max_length=256)] = ""
    number: Number = 0
    dead: Annotated[list[Number], msgspec.Meta(max_length=MAX_DEAD)] = []


class Want(msgspec.Struct, frozen=True, tag="want"):
    """The worker can take `leases` more leases."""

    leases: Annotated[int, msgspec.Meta(ge=1, le=MAX_WANT)]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The lease's first buffer is read; the worker waits for its commit token.

    In a job with clusters, `needs`: bytes for each cluster of the lease, 0 for one that is not stored; `parts`: which
    parts of each are stored, from bit 0, where a cluster has several.
    """

    job: Number
    epoch: Number
    needs: PerCluster = []
    parts: PerCluster = []


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The lease is written; `zeros` bytes of it were zero. `digests`: in a job that wants them, the sums of its blocks:
    16 bytes for each region of 2 MiB that it touches, none where all of it is zeros (mpconv/model/digest.py).
    """

    job: Number
    epoch: Number
    zeros: Bytes
    digests: Annotated[bytes, msgspec.Meta(max_length=MAX_DIGESTS)] = b""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A request failed for good; the fields are those of MpconvError. `kind`: its class, see errors.KINDS."""

    job: Number
    why: str
    operation: str
    image: str
    offset: Bytes | None
    kind: str = "fatal"
    reason: str = ""


class TargetFailed(msgspec.Struct, frozen=True, tag="target_failed"):
    """One of the job's several targets failed for good; the worker goes on without it. The fields are as Failed's.

    `target`: its number in the job, from 0.
    """

    job: Number
    target: Number
    why: str
    operation: str
    image: str
    offset: Bytes | None
    kind: str = "fatal"
    reason: str = ""


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """These ranges (start, length) of the source could not be read and became zeros; only in a job that salvages."""

    job: Number
    ranges: Annotated[list[tuple[Bytes, Bytes]], msgspec.Meta(max_length=MAX_RANGES)]
    why: str


class Differs(msgspec.Struct, frozen=True, tag="differs"):
    """The images of a job that compares differ at this byte, the first of its lease."""

    job: Number
    offset: Bytes


class Said(msgspec.Struct, frozen=True, tag="said"):
    """How something is done, for who wants to know: by what means zeros are made, say."""

    job: Number
    text: str


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """A server does not answer, or answers again: one line for people."""

    job: Number
    text: str


class Crowded(msgspec.Struct, frozen=True, tag="crowded"):
    """A server has no room for another session: what the worker had opened is closed, and it waits for another open.
    `certain`: the server says that this is the reason.
    """

    job: Number
    image: str
    why: str
    certain: bool = True


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """A heartbeat: renews the worker's leases. `count`: of a worker on another host, which of its heartbeats it is."""

    count: Number = 0


class FlushDone(msgspec.Struct, frozen=True, tag="flushed"):
    """All that the worker wrote for the job is durable."""

    job: Number


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """No more leases, please; what may be written is written, then flushed, then Bye."""


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """The worker's connections are closed: nothing of it is written any more."""


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The job that the leases after this message belong to. `fence`: seconds after which a worker that is cut off must
    have stopped; 0 on the coordinator's host. `insist`: a server without room for another session is tried again, as
    one that does not answer.
    """

    job: Job
    fence: Annotated[float, msgspec.Meta(ge=0, le=MAX_FENCE)] = 0.0
    insist: bool = False


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """There is no job for this worker yet: it is to stay, and be heard of. `fence`: as Open's; it holds from now on."""

    fence: Annotated[float, msgspec.Meta(gt=0, le=MAX_FENCE)]


class LeaseGrant(msgspec.Struct, frozen=True, tag="lease"):
    """An extent to copy. With `token` it may be written at once."""

    job: Number
    epoch: Number
    start: Bytes
    length: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
    kind: Annotated[int, msgspec.Meta(ge=0, le=_LAST_KIND)]
    token: bool


class Token(msgspec.Struct, frozen=True, tag="token"):
    """The lease may be written now. `places`: the target's byte for each need that is not 0."""

    job: Number
    epoch: Number
    places: PerCluster = []


class Flush(msgspec.Struct, frozen=True, tag="flush"):
    """Make durable what was written for the job."""

    job: Number


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """One of the job's several targets has failed: go on without it."""

    job: Number
    target: Number


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """No more work: close the connections and end. `again`: there is more to do at once, for new workers: the same
    copy begins anew, or there are other jobs.
    """

    again: bool = False


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """That heartbeat of a worker on another host has come."""

    count: Number


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A worker on another host cannot take part: it is to end, and say why."""

    why: str


FromWorker = (
    Hello
    | Want
    | Ready
    | Done
    | Failed
    | TargetFailed
    | Lost
    | Differs
    | Said
    | Trouble
    | Crowded
    | Alive
    | FlushDone
    | Leaving
    | Gone
)
FromCoordinator = Open | Wait | LeaseGrant | Token | Flush | Drop | Bye | Heard | Refused
