"""What stands in a journal. Pure."""

from __future__ import annotations

import enum

from msgspec import Struct, field

from mpconv.model.ranges import Ranges


class State(enum.Enum):
    """Where a copy stands. RUNNING with nobody at it: its command was killed."""

    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


class Identity(Struct, frozen=True):
    """A store that belongs to the copy, by what it is known again. `role`: source or target; `name`: without password.
    `same` and `content`: as a transport's Fingerprint has them.
    """

    role: str
    name: str
    same: dict[str, str]
    content: dict[str, str]


class Happening(Struct, frozen=True):
    """`at`: seconds since 1970. `start` and `length`: guest bytes, of what it happened to; None: no bytes."""

    at: float
    kind: str
    text: str
    start: int | None = None
    length: int | None = None


class Begun(Struct, frozen=True, kw_only=True):
    """A copy that begins. `source`, `target`: for people. `size`: guest bytes. `course`: all that is needed to go on,
    as whoever runs copies wrote it.
    """

    source: str
    target: str
    size: int
    course: str
    identities: list[Identity]


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What is new. `ranges`: done and durable now, each as long as it is by now. `entries`: of a target whose format
    says where its bytes lie, by number. `zeros`, `written`: bytes, over all. `places`: no byte of the target from here
    on was ever given out to be written; None: as before. `digests`: sums of the regions that changed.
    `durable`: bytes of all ranges. `kinds`: what lies where, as journal/kinds.py has it. None: not told.
    """

    ranges: list[tuple[int, int]]
    zeros: int
    written: int
    entries: dict[int, bytes] = field(default_factory=dict)
    places: int | None = None
    digests: dict[int, bytes] = field(default_factory=dict)
    happened: list[Happening] = field(default_factory=list)
    state: State | None = None
    durable: int | None = None
    kinds: bytes | None = None


class Stored(Struct, frozen=True, kw_only=True):
    """All of a journal. `pid`: who wrote it last; `created` and `updated`: seconds since 1970. `kinds`: as a
    checkpoint's. `progress`: (seconds since 1970, bytes durable, of these zeros), further apart the older they are.
    """

    begun: Begun
    state: State
    pid: int
    created: float
    updated: float
    done: Ranges
    zeros: int
    written: int
    places: int
    happened: list[Happening]
    kinds: bytes = b""
    progress: list[tuple[float, int, int]] = field(default_factory=list)

    def word(self, used: bool) -> str:
        """Its state in a word; `used`: a program is at it. A copy that runs, and that nobody is at, was killed."""
        if self.state is State.RUNNING:
            return "running" if used else "killed"
        return str(self.state.value)

    @property
    def bytes_done(self) -> int:
        """Done and durable."""
        return sum(end - start for start, end in self.done)
