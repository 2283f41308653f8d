"""What is shown while many jobs run: nothing, one line for all, or JSON lines that name their job."""

from __future__ import annotations

from collections.abc import Collection
from typing import TextIO

from mpconv.model.units import human
from mpconv.ui.terminal.progress import JsonLines, Progress, ProgressLine

OVER = ("done", "failed")
_PARTS = 10_000


class Many:
    """How far each job is, in the order in which they were added. This one shows nothing."""

    def __init__(self, stream: TextIO, error_stream: TextIO) -> None:
        self._stream = stream
        self._error_stream = error_stream
        self.rows: dict[str, Progress] = {}

    def add(self, name: str, done: int, total: int, *, over: bool) -> None:
        """A job of which will be heard, or not, since it is `over`. Sizes in bytes."""
        self.rows[name] = Progress(done, total, 0, "done" if over else "waiting")

    def update(self, name: str, done: int, total: int, zeros: int, phase: str) -> None:
        """How far a job is now; may be called at any rate. `phase`: as Progress's, or waiting."""
        self.rows[name] = Progress(done, total, zeros, phase)
        self._show(name)

    def skips(self, name: str, known: int, passed: int) -> None:
        """Of a job so many bytes need no work, and so many of them are complete."""

    def retrying(self, name: str, count: int) -> None:
        """So many of a job's workers wait for a server; 0: they go on."""

    def tick(self) -> None:
        """A second has passed."""

    def _show(self, name: str) -> None:
        """That row is another one: bring it before the reader, if it is time."""

    def finish(self) -> None:
        """Nothing more comes."""

    def dump(self) -> None:
        """SIGUSR1: one line on stderr."""
        try:
            self._error_stream.write(f"{self.summary}\n")
            self._error_stream.flush()
        except (OSError, ValueError):
            pass

    @property
    def done(self) -> int:
        """Bytes that are complete, in all jobs."""
        return sum(row.done for row in self.rows.values())

    @property
    def share(self) -> float:
        """Of everything how much is done, from 0 to 1: each job counts alike, since nobody knows yet how large those
        are that wait.
        """
        return share_of(self.rows.values())

    @property
    def summary(self) -> str:
        """Of all jobs, in a line."""
        over = sum(row.phase in OVER for row in self.rows.values())
        running = sum(row.phase not in (*OVER, "waiting") for row in self.rows.values())
        return f"{over} of {len(self.rows)} jobs over, {running} running, {human(self.done)} done"


def share_of(rows: Collection[Progress]) -> float:
    """Of these jobs."""
    parts = [row.done / row.total if row.total else float(row.phase == "done") for row in rows]
    return sum(parts) / len(parts) if parts else 1.0


class LineOfMany(Many):
    """qemu-img's text for all of them together."""

    def __init__(self, stream: TextIO, error_stream: TextIO) -> None:
        super().__init__(stream, error_stream)
        self._line = ProgressLine(stream, error_stream)

    def _show(self, name: str) -> None:
        self._line.update(int(self.share * _PARTS), _PARTS)

    def finish(self) -> None:
        self._line.finish()


class JsonOfMany(Many):
    """The lines of each job, with its name (docs/progress.md)."""

    def __init__(self, stream: TextIO, error_stream: TextIO) -> None:
        super().__init__(stream, error_stream)
        self._lines: dict[str, JsonLines] = {}

    def retrying(self, name: str, count: int) -> None:
        if name in self._lines:
            self._lines[name].retrying(count, "")

    def _show(self, name: str) -> None:
        row = self.rows[name]
        if name not in self._lines:
            self._lines[name] = JsonLines(self._stream, self._error_stream, job=name)
        self._lines[name].update(row.done, row.total, row.zeros, row.phase)
