"""What was found about a URL: facts, measurements, problems and advice. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from mpconv.model.units import human
from mpconv.transports.identity import Facts


class Fact(Struct, frozen=True):
    """`name`: for programs, and with spaces for people; `value`: as JSON has it; `text`: the same for people."""

    name: str
    value: object
    text: str


class Finding(Struct, frozen=True):
    """Something that is not as it should be. `code`: for programs; `what` is wrong; `fix`: what to do about it."""

    code: str
    what: str
    fix: str


class Cell(Struct, frozen=True):
    """Requests of `size` bytes, `depth` of them in flight; `median` and `worst`: seconds that one took; `rate`: bytes a
    second of all.
    """

    writes: bool
    size: int
    depth: int
    requests: int
    median: float
    worst: float
    rate: float


class Choice(Struct, frozen=True):
    """What a copy would choose by itself: worker processes, and buffers in flight over all of them; `why`: a clause."""

    workers: int
    requests: int
    why: str


class Examination(Struct):
    """Of one URL. `url`: without a password; `role`: "source", "target", or "" for one alone. `problems`: a copy fails,
    or what the server says is not to be relied on; `advice`: it works, and could be faster or take up less room.

    `opened`: it could be read. `creatable`: it is not there, and can be made; `busy`: what else uses it; `fixed`: of a
    size that nothing changes. `free`: bytes of room where it lies; `used`: what it takes up. `guest_size`: bytes of the
    disk in it; `data_size`: of those that are no zeros, as far as is known. `known`: what the store is, whatever its
    name; `marks`: by what it is known when it is opened again. `round_trip`: seconds to connect; `answer`: of the first
    small request.
    """

    url: str
    role: str = ""
    opened: bool = False
    size: int | None = None
    guest_size: int | None = None
    data_size: int | None = None
    writable: bool | None = None
    creatable: bool = False
    busy: str = ""
    free: int | None = None
    used: int | None = None
    fixed: bool = False
    ordered: bool = False
    format: str = "raw"
    why_not_writable: str = ""
    known: Facts | None = None
    marks: dict[str, str] = {}
    round_trip: float | None = None
    answer: float = 0.0
    facts: list[Fact] = []
    cells: list[Cell] = []
    choice: Choice | None = None
    problems: list[Finding] = []
    advice: list[Finding] = []

    def fact(self, name: str, value: object, text: str) -> None:
        """One more."""
        self.facts.append(Fact(name, value, text))

    def problem(self, code: str, what: str, fix: str) -> None:
        """One more."""
        self.problems.append(Finding(code, what, fix))

    def advise(self, code: str, what: str, fix: str) -> None:
        """One more."""
        self.advice.append(Finding(code, what, fix))

    @property
    def ok(self) -> bool:
        """Nothing is in the way."""
        return not self.problems

    def as_json(self) -> dict[str, object]:
        """For programs; bytes and seconds."""
        return {
            "url": self.url,
            "role": self.role or None,
            "ok": self.ok,
            "facts": {fact.name: fact.value for fact in self.facts},
            "speed": [_cell(cell) for cell in self.cells],
            "choice": msgspec.to_builtins(self.choice),
            "problems": msgspec.to_builtins(self.problems),
            "advice": msgspec.to_builtins(self.advice),
        }


def _cell(cell: Cell) -> dict[str, object]:
    return {
        "what": "write" if cell.writes else "read",
        "size": cell.size,
        "depth": cell.depth,
        "requests": cell.requests,
        "median": round(cell.median, 6),
        "worst": round(cell.worst, 6),
        "rate": round(cell.rate),
    }


def milliseconds(seconds: float) -> str:
    """ "0.21 ms": for people."""
    value = seconds * 1000
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def size_words(size: int) -> str:
    """Both for people and for copying from."""
    return f"{human(size)} ({size} bytes)" if size >= 1024 else f"{size} bytes"
