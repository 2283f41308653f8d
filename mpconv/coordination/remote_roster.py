"""Workers of other hosts that take part in a job: who they are, and who has fallen silent. Pure.

They come and go as they like. A name stands for one of them, and never comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from msgspec import Struct

from mpconv.model.errors import one_line

SILENT_FENCES = 3
"""So many times the fence a guest is silent before its work is given out again (PROTOCOL.md has the sum)."""
_PAUSE = 5.0
"""Seconds between two looks, due every second, after which it was the coordinator that did not run."""


def other_version(host: str, theirs: int, ours: int) -> tuple[str, str]:
    """What is said of a worker whose mpconv speaks another protocol: here, and to itself."""
    age, fix = "older" if theirs < ours else "newer", "install the same version on all hosts"
    where = one_line(host.partition("/")[0])
    refusal = f"the mpconv of this host is {age} than the one that it is to work for: {fix}"
    return f"a worker on {where} was refused: its mpconv is {age} than this one: {fix}", refusal


class RemoteWorkerEntry(Struct):
    """`host`: its display name, a slash and what tells it from others; `number`: its own there. `heard`: when, in
    seconds of the caller's clock. `working`: it has opened the images and asked for work.
    """

    name: str
    host: str
    number: int
    heard: float
    working: bool = False

    @property
    def label(self) -> str:
        """ "HOST/NUMBER"."""
        return f"{one_line(self.host.partition('/')[0])}/{self.number}"

    def __str__(self) -> str:
        return f"worker {self.number} on {one_line(self.host.partition('/')[0])}"


class RemoteRoster:
    """All that are not known to have stopped. `silence`: seconds."""

    def __init__(self, silence: float) -> None:
        self.silence = silence
        self._by_name: dict[str, RemoteWorkerEntry] = {}
        self._gone: set[str] = set()
        self._looked: float | None = None

    def __iter__(self) -> Iterator[RemoteWorkerEntry]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> RemoteWorkerEntry | None:
        """The one of that name."""
        return self._by_name.get(name)

    def hello(self, name: str, host: str, number: int, now: float) -> RemoteWorkerEntry | None:
        """Somebody says who it is; None when that name is over."""
        if name in self._gone:
            return None
        return self._by_name.setdefault(name, RemoteWorkerEntry(name, host, number, now))

    def outlived(self, by: RemoteWorkerEntry, dead: Collection[int]) -> list[RemoteWorkerEntry]:
        """Those that are known dead, since `by`, which says hello, was started by who reaped them. Another name for
        the same worker is one under which it was never answered.
        """
        return [
            guest
            for guest in self
            if guest.host == by.host and guest is not by and (guest.number in dead or guest.number == by.number)
        ]

    def of(self, host: str, numbers: Collection[int]) -> list[RemoteWorkerEntry]:
        """Those of that host with these numbers there."""
        return [guest for guest in self if guest.host == host and guest.number in numbers]

    def heard(self, name: str, now: float) -> RemoteWorkerEntry | None:
        """A word from one of them; None from anybody else."""
        guest = self._by_name.get(name)
        if guest is not None:
            guest.heard = now
        return guest

    def ended(self, name: str) -> RemoteWorkerEntry | None:
        """It has stopped, or never worked: its name is over."""
        self._gone.add(name)
        return self._by_name.pop(name, None)

    def silent(self, now: float) -> list[RemoteWorkerEntry]:
        """Those that have stopped by themselves, because they were cut off.

        When nobody has looked for a while, nobody listened either: then all of them count as heard just now.
        """
        paused = self._looked is not None and now - self._looked > _PAUSE
        self._looked = now
        if paused:
            for guest in self:
                guest.heard = now
        return [guest for guest in self if now - guest.heard > self.silence]
