"""A target that is reset while a session lives loses what lay in its cache: what was written and not flushed.

It says so by a UNIT ATTENTION. The first time the session counts as lost, so that everything since the last flush is
written again. From then on this process flushes every write to that target, and does it again when there was another
reset meanwhile: a target that is reset every few seconds is slow, but right, and the copy has an end. Pure.
"""

from __future__ import annotations

WORDS = "the target was reset, and what it had not written down may be lost"
AGAIN = "the target is reset again and again"
TRIES = 64
"""So often one write is done again."""
_RESETS = (0x2900, 0x2901, 0x2902, 0x2904)
"""Sense codes of power on, bus reset and internal reset. A LUN reset (29/03) and a lost nexus leave the cache."""

_reset_once: set[tuple[str, int, str]] = set()
"""Targets, as Address.place has them."""


class Resets:
    """Of one session. `heard`: so many."""

    def __init__(self, place: tuple[str, int, str]) -> None:
        self._place = place
        self._under_way = self._written = self._durable = 0
        self.heard = 0

    @property
    def careful(self) -> bool:
        """Whether every write is to be flushed."""
        return self._place in _reset_once

    def begins(self) -> None:
        """Something is being written that is not flushed at once."""
        self._under_way += 1

    def ends(self) -> None:
        """As well as may be."""
        self._under_way -= 1
        self._written += 1

    def mark(self) -> int:
        """What a flush that begins now makes durable."""
        return self._written

    def flushed(self, mark: int) -> None:
        """It has succeeded."""
        self._durable = max(self._durable, mark)

    def hear(self, ascq: int) -> bool:
        """News. True: the session is over, as something of it may be lost."""
        if ascq not in _RESETS:
            return False
        self.heard += 1
        if not self._under_way and self._written == self._durable:
            return False
        _reset_once.add(self._place)
        return True
