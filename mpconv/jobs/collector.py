"""What a job has told, kept for its end."""

from __future__ import annotations

from mpconv.coordination.observer import Observer


class Collector(Observer):
    """`done` of `total` bytes are complete, `zeros` of them zero. `found`: the digest, and the image it is of.
    `known`, `passed`: of what needs no work, as an Observer hears. `before`: what was complete, and zeros, at first.
    `checked`: so many bytes of how many were read back.
    """

    def __init__(self) -> None:
        self.phase_now = "copy"
        self.done = self.total = self.zeros = 0
        self.known = self.passed = 0
        self.before: tuple[int, int] | None = None
        self.checked: tuple[int, int] | None = None
        self.found: tuple[str, str] | None = None
        self._lost: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, zeros: int) -> None:
        self.done, self.total, self.zeros = done, total, zeros
        if self.before is None:
            self.before = (done, zeros)

    def skips(self, known: int, passed: int) -> None:
        self.known, self.passed = known, passed

    def phase(self, name: str) -> None:
        self.phase_now = name
        if name == "verify":
            self.done = self.zeros = self.known = self.passed = 0

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        self._lost += [(start, length, why) for start, length in ranges]

    def digest(self, text: str, image: str) -> None:
        self.found = (text, image)

    def verified(self, checked: int, size: int) -> None:
        self.checked = (checked, size)

    def lost_ranges(self) -> list[tuple[int, int, str]]:
        """(start, length, why) of what could not be read, ascending, neighbours joined. What a worker that died lost is
        told of again by the one that reads it again.
        """
        joined: list[tuple[int, int, str]] = []
        at = 0
        for lost_from, length, why in sorted(self._lost):
            start, end = max(at, lost_from), lost_from + length
            if start >= end:
                continue
            if joined and joined[-1][2] == why and at == start:
                start = joined.pop()[0]
            joined.append((start, end - start, why))
            at = end
        return joined
