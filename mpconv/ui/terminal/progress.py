"""What is shown while a job runs: nothing, qemu-img's line, a live bar or JSON lines.

Bytes are counted when they are complete. A stream that takes no more (a closed pipe, a full disk) ends the display,
never the job.
"""

from __future__ import annotations

import abc
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from msgspec import Struct

from mpconv.model.names import readable_values
from mpconv.ui.terminal.speed import Speed

_STEP = 1.0
"""Percentage points between two prints, as qemu-img has it."""
_SECONDS_BETWEEN = 0.25
_OVER = ("done", "failed")

Clock = Callable[[], float]


class Progress(Struct, frozen=True):
    """`done` of `total` bytes are complete, `zeros` of them zero. `phase`: open, copy or read, flush, verify, done
    or failed.
    """

    done: int = 0
    total: int = 0
    zeros: int = 0
    phase: str = "open"

    def without(self, known: int, passed: int) -> Progress:
        """The same of what must be moved: without `known` bytes that need no work, `passed` of which are complete."""
        return Progress(max(0, self.done - passed), max(0, self.total - known), max(0, self.zeros - passed), self.phase)

    @property
    def percent(self) -> float:
        if self.total == 0:
            return 0.0 if self.phase in {"open", "failed"} else 100.0
        return min(100.0, 100 * self.done / self.total)

    def __str__(self) -> str:
        return f"    ({self.percent:3.2f}/100%)"


class Display(abc.ABC):
    """Shows how far a job is. `workers`: how many take part, 0 while that is not known. `known`, `passed`: bytes that
    need no work, and those of them that are complete.
    """

    workers = 0
    known = passed = 0

    def __init__(self, stream: TextIO, error_stream: TextIO) -> None:
        self._stream = stream
        self._error_stream = error_stream
        self._progress = Progress()
        self._broken = False

    def update(self, done: int, total: int, zeros: int = 0, phase: str = "copy") -> None:
        """How far it is now; may be called at any rate."""
        self._progress = Progress(done, total, zeros, phase)
        self._show()

    def retrying(self, count: int, why: str) -> None:  # noqa: B027 (lines of text leave it to warnings)
        """So many workers wait for a server, the first of them for the reason `why`; 0: they go on."""

    def tick(self) -> None:  # noqa: B027 (most displays change only when the job moves)
        """A second has passed."""

    def summary(self, text: str) -> bool:
        """The job has done what it should; that is all of it in a line. False: it is not shown."""
        return False

    @abc.abstractmethod
    def _show(self) -> None:
        """Bring `_progress` before the reader, if it is time."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Nothing more comes: leave the terminal as it should be."""

    def lost(self, ranges: list[tuple[int, int, str]]) -> None:  # noqa: B027 (most displays leave it to stderr)
        """(start, length, why) of what could not be read, at the end."""

    def result(self, facts: Mapping[str, str | int]) -> bool:
        """What the job found out, after the end. False: somebody else must tell people."""
        return False

    def dump(self) -> None:
        """SIGUSR1: one line on stderr."""
        self._write(self._error_stream, f"{self._progress}\n")

    def _write(self, stream: TextIO, text: str) -> None:
        if stream is self._stream and self._broken:
            return
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            if stream is self._stream:
                self._broken = True


class Silent(Display):
    """Shows nothing unless asked."""

    def _show(self) -> None:
        pass

    def finish(self) -> None:
        pass


class ProgressLine(Display):
    """qemu-img's text: printed at 0, at 100 and whenever it moved by more than one percentage point."""

    def __init__(self, stream: TextIO, error_stream: TextIO = sys.stderr) -> None:
        super().__init__(stream, error_stream)
        self._printed: float | None = None

    def _show(self) -> None:
        percent, last = self._progress.percent, self._printed
        if percent == last:
            return
        if last is None or percent in (0.0, 100.0) or percent < last or percent > last + _STEP:
            self._printed = percent
            self._write(self._stream, f"{self._progress}\r")

    def finish(self) -> None:
        self._write(self._stream, "\n")


class JsonLines(Display):
    """One object a line (docs/progress.md): the first and the last report, every new phase, else four a second. It
    begins with the `job`, if that is one of many.
    """

    def __init__(
        self, stream: TextIO, error_stream: TextIO, now: Clock = time.monotonic, *, job: str | None = None
    ) -> None:
        super().__init__(stream, error_stream)
        self._first = {} if job is None else {"job": job}
        self._now = now
        self._started = now()
        self._speed = Speed()
        self._written: Progress | None = None
        self._written_at = 0.0
        self._retrying = 0

    def _show(self) -> None:
        now = self._now()
        before = self._written
        if before is not None and before.phase == "open" and self._progress.done:  # an earlier run's
            self._speed = Speed()
        self._speed.update(self._progress.done, now)
        if before is None or before.phase != self._progress.phase or now - self._written_at >= _SECONDS_BETWEEN:
            self._print(now)

    def retrying(self, count: int, why: str) -> None:
        self._retrying = count
        if self._progress.phase not in _OVER:
            self._print(self._now())

    def _print(self, now: float) -> None:
        progress = self._progress
        left = 0.0 if progress.phase == "done" else None
        if progress.phase not in _OVER and progress.total:
            left = self._speed.left(progress.total)
        line = self._first | {
            "phase": progress.phase,
            "done": progress.done,
            "total": progress.total,
            "zero": progress.zeros,
            "rate": round(self._speed.rate()),
            "eta": None if left is None else round(left, 1),
            "elapsed": round(now - self._started, 3),
            "retrying": self._retrying,
        }
        self._written, self._written_at = progress, now
        self._write(self._stream, _json(line) + "\n")

    def finish(self) -> None:
        if self._written != self._progress:
            self._print(self._now())

    def lost(self, ranges: list[tuple[int, int, str]]) -> None:
        if ranges:
            listed = [{"start": start, "length": length, "why": why} for start, length, why in ranges]
            self._write(self._stream, _json({"lost": listed}) + "\n")

    def result(self, facts: Mapping[str, str | int]) -> bool:
        self._write(self._stream, _json(facts) + "\n")
        return True


def _json(facts: Mapping[str, object]) -> str:
    """One line."""
    return json.dumps(readable_values(dict(facts)))
