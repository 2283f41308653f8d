"""Which job begins next, and how processes and bandwidth are divided among those that run. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

_LONGEST_DELAY = 300.0


class Entry(Struct, kw_only=True):
    """A job that is not over. `failed`: how often; `away_since`: when its server first did not answer, and did not
    since; `ready_at`: both in seconds of the caller's clock. `patience`: seconds for which that is no failure.
    """

    name: str
    number: int
    priority: int = 0
    retries: int = 0
    delay: float = 0.0
    patience: float = 0.0
    begun: int = 0
    failed: int = 0
    away_since: float | None = None
    ready_at: float = -math.inf

    @property
    def rank(self) -> tuple[int, int, int]:
        """The lowest begins first: who was never tried before who failed, then by priority, then as they are listed."""
        return self.begun, -self.priority, self.number


class Schedule:
    """All jobs, `at_once` of which may run."""

    def __init__(self, entries: Iterable[Entry], at_once: int) -> None:
        self.at_once = at_once
        self._waiting = {entry.name: entry for entry in entries}
        self._running: dict[str, Entry] = {}

    @property
    def over(self) -> bool:
        """Nothing runs or waits."""
        return not self._waiting and not self._running

    @property
    def expected(self) -> int:
        """How many run, or would if those that wait began now."""
        return min(self.at_once, len(self._running) + len(self._waiting))

    def next(self, now: float) -> Entry | None:
        """The job that begins now, if one may."""
        ready = [entry for entry in self._waiting.values() if entry.ready_at <= now]
        if not ready or len(self._running) >= self.at_once:
            return None
        entry = min(ready, key=lambda entry: entry.rank)
        entry.begun += 1
        self._running[entry.name] = self._waiting.pop(entry.name)
        return entry

    @property
    def wake_at(self) -> float | None:
        """When one may begin that may not yet; None: only when another one has ended."""
        if not self._waiting or len(self._running) >= self.at_once:
            return None
        return min(entry.ready_at for entry in self._waiting.values())

    def ended(self, name: str, now: float, *, again: bool, away: bool = False) -> float | None:
        """It does not run any more. `again`: it may succeed another time; `away`: it could not begin, since its server
        does not answer. Seconds until it may begin again, None: it is over.
        """
        entry = self._running.pop(name)
        if not away:
            entry.away_since = None
        elif entry.away_since is None:
            entry.away_since = now
        waits = entry.away_since is not None and now - entry.away_since < entry.patience
        entry.failed += not waits
        if not again or entry.failed > entry.retries:
            return None
        wait = entry.delay if waits else min(_LONGEST_DELAY, entry.delay * 2.0 ** min(entry.failed - 1, 30))
        entry.ready_at = now + wait
        self._waiting[name] = entry
        return wait

    def stop(self) -> list[str]:
        """No job begins any more: those that waited."""
        left = list(self._waiting)
        self._waiting.clear()
        return left


class Division:
    """`total` processes, each of which works for one job. Each job that is expected to run is sure of one, so that
    `expected`, of those that run or are about to, must never be above `total`.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.held: dict[str, int] = {}
        self._most: dict[str, int] = {}

    @property
    def free(self) -> int:
        return self.total - sum(self.held.values())

    def share(self, name: str, most: int, expected: int) -> int:
        """For a job that begins and can use `most`: an equal share of what is free."""
        others = max(1, expected - len(self.held))
        self.held[name] = max(1, min(most, self.free // others))
        self._most[name] = most
        return self.held[name]

    def release(self, name: str) -> None:
        """The job has none any more."""
        self.held.pop(name, None)
        self._most.pop(name, None)

    def more(self, weights: Mapping[str, int], expected: int) -> dict[str, int]:
        """What those with `weights`, which run, get besides, since nobody else waits for it: first who has least for
        its weight.
        """
        spare = self.free - max(0, expected - len(self.held))
        found: dict[str, int] = {}
        while spare > 0:
            hungry = [name for name in weights if name in self.held and self.held[name] < self._most[name]]
            if not hungry:
                break
            name = min(hungry, key=lambda name: self.held[name] / weights[name])
            self.held[name] += 1
            found[name] = found.get(name, 0) + 1
            spare -= 1
        return found


class Flow(Struct, frozen=True, kw_only=True):
    """What a job that runs takes of bandwidth: each byte once of each of `servers`, which may name one twice. `own`:
    bytes a second at most, 0 for no limit.
    """

    weight: int = 1
    own: int = 0
    servers: Sequence[str] = ()


def divide(flows: Mapping[str, Flow], total: int, servers: Mapping[str, int]) -> dict[str, int]:
    """Bytes a second for each job, 0 for no limit: all limits hold together, and no job could have more but at the cost
    of one that has no more for its weight. `total` and what `servers` allow: 0 for no limit.
    """
    limits: list[tuple[int, dict[str, int]]] = []
    if total:
        limits.append((total, dict.fromkeys(flows, 1)))
    for server, limit in servers.items():
        if limit:
            limits.append((limit, {name: list(flow.servers).count(server) for name, flow in flows.items()}))
    limits += [(flow.own, {name: 1}) for name, flow in flows.items() if flow.own]
    limits = [(limit, {name: times for name, times in users.items() if times}) for limit, users in limits]
    rates: dict[str, float] = {}
    while True:
        best: tuple[float, dict[str, int]] | None = None
        for limit, users in limits:
            rising = sum(times * flows[name].weight for name, times in users.items() if name not in rates)
            if rising:
                left = limit - sum(times * rates[name] for name, times in users.items() if name in rates)
                level = max(0.0, left) / rising
                if best is None or level < best[0]:
                    best = level, users
        if best is None:
            break
        level, users = best
        rates |= {name: level * flows[name].weight for name in users if name not in rates}
    return {name: max(1, math.floor(rates[name])) if name in rates else 0 for name in flows}
