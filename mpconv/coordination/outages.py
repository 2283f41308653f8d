"""Which workers of a job wait for a server that does not answer. Pure."""

from __future__ import annotations

from collections.abc import Callable

_IN_FLIGHT = 1.0
"""Seconds in which what a worker completes may have been read before its server went."""
Changed = Callable[[int, str], None]


class Outages:
    """`changed` hears how many workers wait now, and what the first of them said; 0 and "" when none does any more.
    Times are in seconds, on a clock of the caller's. `waiting`: since when each of them has, and what it said.
    """

    def __init__(self, changed: Changed) -> None:
        self._changed = changed
        self.waiting: dict[str, tuple[float, str]] = {}

    def trouble(self, worker: str, text: str, now: float) -> None:
        """The worker waits, and says why; maybe not for the first time."""
        if worker not in self.waiting:
            self.waiting[worker] = (now, text)
            self._tell()

    def works(self, worker: str, now: float) -> None:
        """It has completed something, or asks for more: its server answers again."""
        began = self.waiting.get(worker)
        if began is not None and now - began[0] >= _IN_FLIGHT:
            self.over(worker)

    def over(self, worker: str) -> None:
        """It is gone, or answered."""
        if self.waiting.pop(worker, None) is not None:
            self._tell()

    def end(self) -> None:
        """So are all."""
        if self.waiting:
            self.waiting.clear()
            self._tell()

    def _tell(self) -> None:
        first = next(iter(self.waiting.values()), (0.0, ""))
        self._changed(len(self.waiting), first[1].rpartition(": trying again")[0] or first[1])
