"""How fast a copy is, as of late. Pure."""

from __future__ import annotations

from collections import deque

_RECENT = 10.0
_BETWEEN = 0.25


class Speed:
    """Bytes per second over the last ten seconds, and the seconds that are left at that rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._latest = (0.0, 0)

    def update(self, done: int, now: float) -> None:
        """`done` bytes are complete at the time `now`. Fewer than before: the copy begins anew."""
        if done < self._latest[1]:
            self._seen.clear()
        self._latest = (now, done)
        if not self._seen or now - self._seen[-1][0] >= _BETWEEN:
            self._seen.append(self._latest)
        while len(self._seen) > 1 and now - self._seen[0][0] > _RECENT:
            self._seen.popleft()

    def rate(self) -> float:
        """Bytes per second; 0 while nothing can be said."""
        if not self._seen:
            return 0.0
        seconds = self._latest[0] - self._seen[0][0]
        return (self._latest[1] - self._seen[0][1]) / seconds if seconds > 0 else 0.0

    def left(self, total: int) -> float | None:
        """Seconds until `total` bytes are done; None while nobody knows."""
        missing = total - self._latest[1]
        if missing <= 0:
            return 0.0
        rate = self.rate()
        return missing / rate if rate > 0 else None
