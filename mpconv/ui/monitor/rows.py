"""A row for each worker of a job: what it did, how fast, and where it stands. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from msgspec import Struct, field

from mpconv.ui.monitor.facts import Worker
from mpconv.ui.monitor.timeline import RECENT

_KEPT = 1024
"""Rows of workers that are gone."""
_OFF = frozenset({"gone", "lost"})


class Row(Struct):
    """`done`: bytes completed; `recent`: (when, as many), for its rate. The rest is as Worker's."""

    name: str
    state: str = "waiting"
    read: int = 0
    zero: int = 0
    done: int = 0
    copies: bool = True
    troubles: int = 0
    restarts: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=deque)


class Rows:
    """Workers are known by the names that events carry, and shown by others."""

    def __init__(self) -> None:
        self.any = Row("")
        """Of workers that nobody has heard of."""
        self.copies = True
        """Whether what they complete is written, or only read."""
        self._rows: dict[str, Row] = {}
        self._past: deque[Row] = deque(maxlen=_KEPT)
        """Workers that an earlier part of the job had, or that have made room for others."""

    def hello(self, worker: str, where: str) -> None:
        """A worker begins, or begins anew. No two are shown by the same name."""
        if worker in self._rows:
            return
        taken = {row.name for row in (*self._rows.values(), *self._past)}
        name, number = where, 1
        while name in taken:
            number += 1
            name = f"{where} #{number}"
        self._rows[worker] = Row(name, copies=self.copies)
        if len(self._rows) > _KEPT:
            off = next((key for key, row in self._rows.items() if row.state in _OFF), None)
            if off is not None:
                self._past.append(self._rows.pop(off))

    def get(self, worker: str) -> Row | None:
        """The row of a worker; None: nobody has heard of it."""
        return self._rows.get(worker)

    def name(self, worker: str) -> str:
        """How people call it."""
        row = self._rows.get(worker)
        return row.name if row is not None else "a worker"

    def stands(self, worker: str, state: str) -> None:
        """It is in that state now."""
        row = self._rows.get(worker)
        if row is not None:
            row.state = state

    def part(self) -> None:
        """All of them are gone."""
        for row in self._rows.values():
            row.state = "lost" if row.state == "lost" else "gone"
        self._past += self._rows.values()
        self._rows = {}

    def sample(self, now: float) -> None:
        """How much each has done by now."""
        for row in self._rows.values():
            row.recent.append((now, row.done))

    def facts(self, leases: Mapping[str, int], in_doubt: Mapping[str, int], now: float) -> list[Worker]:
        """As they stand, those that take part first. `leases`, `in_doubt`: how many each holds."""
        found = [_facts(row, leases.get(key, 0), in_doubt.get(key, 0), now) for key, row in self._rows.items()]
        found += [_facts(row, 0, 0, now) for row in self._past]
        found.sort(key=lambda worker: worker.state in _OFF)
        return found


def _facts(row: Row, held: int, in_doubt: int, now: float) -> Worker:
    state = "at work" if row.state == "waiting" and held else row.state
    return Worker(
        name=row.name,
        state=state,
        read=row.read,
        written=row.done - row.zero if row.copies else 0,
        zero=row.zero,
        rate=0.0 if state in _OFF else round(rate_of(row.recent, now)),
        leases=held,
        in_doubt=in_doubt,
        troubles=row.troubles,
        restarts=row.restarts,
    )


def rate_of(recent: deque[tuple[float, int]], now: float) -> float:
    """Bytes per second over the last ten seconds."""
    while len(recent) > 2 and now - recent[0][0] > RECENT:
        recent.popleft()
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return 0.0
    return max(0.0, (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]))
