"""What is known of a job, as the page, the report and the metrics get it. Sizes are bytes. Pure."""

from __future__ import annotations

from msgspec import Struct


class Happened(Struct, frozen=True):
    """`at`: seconds since 1970. `kind`: what happened, in a word or two; `text`: the rest."""

    at: float
    kind: str
    text: str


class Sample(Struct, frozen=True, array_like=True):
    """Bytes read, written and found to be zeros since the job began, `at` seconds after it did. None of them fall."""

    at: float
    read: int
    written: int
    zero: int


class Worker(Struct, frozen=True, kw_only=True):
    """`name`: its process, "pid 4711", or "HOST/2" on another host. `read` and `written`: since it began; `zero`: what
    it found to be zeros; `rate`: bytes completed per second, as of late. `troubles`: servers that did not answer it, or
    answered again; `restarts`: it lost its target and began anew. `state`: at work, waiting, leaving, gone or lost.
    """

    name: str
    state: str
    read: int = 0
    written: int = 0
    zero: int = 0
    rate: float = 0.0
    leases: int = 0
    in_doubt: int = 0
    troubles: int = 0
    restarts: int = 0


class Map(Struct, frozen=True):
    """The disk from its beginning to its end in equal bins of `bin` bytes, a character for each.

    `kinds`: what lies there: `d` data, `z` zeros, `u` unallocated, `.` not known yet. `marks`: how far it is: `?` a
    lease in doubt, `l` leased, `v` verified, `s` durable ("safe"), `w` written, `p` a part of it, `.` none. `levels`:
    how much of it is done, 0 to 9.
    """

    bin: int
    kinds: str
    marks: str
    levels: str


COPY, COMPARE, READ = "copy", "compare", "read"


class Job(Struct, frozen=True, kw_only=True):
    """A job as it stands. `kind`: a copy, or one that only compares or reads; the `source` and `target` of such a one
    are the images that it reads, and what its map calls verified is read. `state`: waiting, opening, running, finished,
    failed, stopped or, of a journal, killed. `stage`: what it is at. `why`: of what it failed. `begun`, `updated`:
    seconds since 1970; `elapsed`: seconds in which it has worked.

    `done`: of `size`, what is complete; `done_zero`: of that, zeros; `durable`: of that, what a flush has covered.
    `read`, `written`, `zero`: what was done, twice where it was done again. `lost`: could not be read.
    `targets`: how many; `dropped`: those of them that failed. `digest` and `verified` once they are known.
    `verdict`: what a comparison came to; `differs`: it is that the images do.
    `workers`: at most some hundred of `workers_known`. `from_journal`: nothing is known of leases and workers.
    """

    name: str
    source: str
    target: str
    kind: str = COPY
    state: str
    stage: str = ""
    why: str | None = None
    begun: float
    updated: float
    elapsed: float
    size: int
    done: int = 0
    done_zero: int = 0
    durable: int = 0
    read: int = 0
    written: int = 0
    zero: int = 0
    rate: float = 0.0
    left: float | None = None
    lost: int = 0
    leases: int = 0
    in_doubt: int = 0
    troubles: int = 0
    restarts: int = 0
    deaths: int = 0
    targets: int = 1
    dropped: int = 0
    digest: str | None = None
    verified: str | None = None
    verdict: str | None = None
    differs: bool = False
    go_on: str | None = None
    from_journal: bool = False
    map: Map | None = None
    timeline: list[Sample] = []
    workers: list[Worker] = []
    workers_known: int = 0
    events: list[Happened] = []
