"""One job of a fan-out, and what became of it. Pure."""

from __future__ import annotations

import enum
from urllib.parse import urlsplit

from msgspec import Struct

from mpconv.model.errors import UsageError
from mpconv.model.place import Place
from mpconv.options.copy import Options

SERVED = ("nfs", "iscsi")
JOBS = 4
RETRIES = 2
RETRY_SECONDS = 5.0


class Spec(Struct, frozen=True, kw_only=True):
    """`name`: it alone has. Of two jobs that wait the one of higher `priority` begins first; of two that run the one of
    twice the `weight` gets twice as much. A job that fails of what may pass is begun again `retries` times, the first
    time `retry_delay` seconds later at the earliest.
    """

    name: str
    sources: list[Place]
    target: Place
    options: Options = Options()
    priority: int = 0
    weight: int = 1
    retries: int = RETRIES
    retry_delay: float = RETRY_SECONDS

    @property
    def places(self) -> list[Place]:
        """All images."""
        return [*self.sources, self.target]

    @property
    def servers(self) -> list[str]:
        """Those that each byte passes through, once for each time."""
        passed = {server_of(place.url): None for place in self.sources}
        return [server for server in (*passed, server_of(self.target.url)) if server is not None]


class Limits(Struct, frozen=True, kw_only=True):
    """`jobs`: at once, None: 4, or fewer; `workers`: processes on each host, None: here one for each core or job, on
    others as many as they offer. Bytes a second, 0 for no limit: `rate` over all jobs, `servers` through each of these.
    """

    jobs: int | None = None
    workers: int | None = None
    rate: int = 0
    servers: dict[str, int] = {}


class Fanout(Struct, frozen=True, kw_only=True):
    """All that is to be done. URLs may carry passwords."""

    jobs: list[Spec]
    limits: Limits = Limits()


class Result(enum.Enum):
    """What became of a job. STOPPED: by a signal, in the middle; LEFT: it never began, for the same reason."""

    WAITING = "waiting"
    RUNNING = "running"
    WRITTEN = "written"
    FAILED = "failed"
    STOPPED = "stopped"
    LEFT = "not begun"


class Outcome(Struct, kw_only=True):
    """`target`: without a password. `done` of `size` bytes are complete, `zeros` of them zero; `seconds`: over all
    attempts; `verified`: bytes that were read back, None: not asked for. `lost`: bytes that could not be read and are
    zeros.
    """

    name: str
    target: str
    result: Result = Result.WAITING
    why: str | None = None
    done: int = 0
    size: int = 0
    zeros: int = 0
    seconds: float = 0.0
    attempts: int = 0
    digest: str | None = None
    verified: int | None = None
    lost: int = 0


def server_of(url: str) -> str | None:
    """The host that serves it, in small letters; None for what is on this host."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an address in brackets that is none: who opens it says so
        return None
    return parts.hostname if parts.scheme.lower() in SERVED else None


def workers_and_jobs(limits: Limits, count: int, cores: int, *, listening: bool) -> tuple[int, int]:
    """Processes on this host, and jobs at once, of `count` in all. No job waits for a process of this host. UsageError
    when nobody would work.
    """
    if limits.workers == 0 and not listening:
        raise UsageError("workers = 0 (or --workers 0) requires --listen or --cluster: nobody would copy")
    if limits.workers == 0:
        return 0, limits.jobs or min(count, JOBS)
    workers = limits.workers or max(cores, limits.jobs or 1)
    return workers, min(limits.jobs or JOBS, workers)
