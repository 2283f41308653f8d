"""A live bar on a terminal, drawn by rich."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mpconv.model.units import duration, human
from mpconv.ui.terminal.progress import Clock, Display, Progress
from mpconv.ui.terminal.speed import Speed

_SECONDS_BETWEEN = 0.1
_SHORTEST_BAR, _LONGEST_BAR = 10, 40
_WAITING = {"open": "opening", "flush": "flushing"}


class LiveBar(Display):
    """One line: percentage, bar, bytes, rate now and on average, time left, zeros, workers; in a narrow terminal the
    less telling ones are left out. It is drawn from `update`, without a thread.
    """

    def __init__(self, stream: TextIO, error_stream: TextIO, now: Clock = time.monotonic) -> None:
        super().__init__(stream, error_stream)
        self._now = now
        self._started = self._drawn_at = now()
        self._drawn_phase = ""
        self._speed = Speed()
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        # Warnings that are printed while it lives go above it, if they go to this terminal.
        self._shares = error_stream.isatty()
        self._retrying, self._why, self._since = 0, "", 0.0
        self._summary = ""
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=self._shares and error_stream is sys.stderr,
        )

    def _show(self) -> None:
        now, phase = self._now(), self._progress.phase
        if self._drawn_phase == "open" and self._progress.done:  # an earlier run's
            self._speed = Speed()
        self._speed.update(self._progress.done - self.passed, now)
        if phase != self._drawn_phase or now - self._drawn_at >= _SECONDS_BETWEEN:
            self._draw()

    @property
    def _moves(self) -> Progress:
        """How far it is of what must be moved."""
        return self._progress.without(self.known, self.passed)

    def retrying(self, count: int, why: str) -> None:
        if count and not self._retrying:
            self._since = self._now()
        self._retrying, self._why = count, why
        self._draw()

    def tick(self) -> None:
        now = self._now()
        if now - self._drawn_at >= _SECONDS_BETWEEN and self._live.is_started:
            self._speed.update(self._progress.done - self.passed, now)
            self._draw()

    def summary(self, text: str) -> bool:
        self._summary = text
        return True

    def _draw(self) -> None:
        self._drawn_at, self._drawn_phase = self._now(), self._progress.phase
        if self._broken:
            return
        try:
            self._live.start()
            self._live.update(self._lines(), refresh=True)
        except (OSError, ValueError):
            self._broken = True

    def _lines(self) -> RenderableType:
        if self._summary and self._progress.phase == "done":
            return Text(self._summary)
        if not self._retrying or self._progress.phase in {"done", "failed"}:
            return self._line()
        workers = f" ({self._retrying} workers)" if self._retrying > 1 else ""
        told = f"retrying for {duration(self._now() - self._since)}{workers}: {self._why}"
        return Group(self._line(), Text(told, "yellow", no_wrap=True, overflow="ellipsis"))

    def _line(self) -> Table:
        progress = self._moves
        percent, size, rate, remaining, zeros = self._texts()
        average, workers = self._more_texts()
        room = self._console.width - len(percent)
        shown = {percent}
        for text in (remaining, rate, size, zeros, workers, average):
            if text and len(text) + 1 + _SHORTEST_BAR + 1 <= room:
                shown.add(text)
                room -= len(text) + 1
        grid = Table.grid(padding=(0, 1, 0, 0))
        cells: list[Text | ProgressBar] = [Text(percent, "bold")]
        if room > _SHORTEST_BAR:
            bar = min(_LONGEST_BAR, room - 1)
            cells.append(ProgressBar(total=100, completed=progress.percent, width=bar))
        cells += [Text(text) for text in (size, rate, average, remaining, zeros, workers) if text in shown]
        for _ in cells:
            grid.add_column(no_wrap=True)
        grid.add_row(*cells)
        return grid

    def _texts(self) -> tuple[str, str, str, str, str]:
        """Percentage, bytes, rate, time and zeros; empty for what is not known."""
        progress, phase = self._moves, self._progress.phase
        elapsed = self._now() - self._started
        known = progress.total or phase != "failed"
        size = f"{human(progress.done)} of {human(progress.total)}" if phase != "open" and known else ""
        speed = self._speed.rate()
        if phase == "done" and elapsed > 0:
            speed = progress.done / elapsed
        rate = f"{human(speed)}/s" if speed > 0 else ""
        left = self._speed.left(progress.total)
        if phase == "done":
            remaining = f"in {duration(elapsed)}"
        elif phase == "failed":
            remaining = f"failed after {duration(elapsed)}"
        elif phase in _WAITING:
            remaining = _WAITING[phase]
        else:
            remaining = "" if left is None else f"{duration(left)} left"
            if phase == "verify":
                remaining = f"verifying, {remaining}" if remaining else "verifying"
        zeros = f"{human(self._progress.zeros)} zeros" if self._progress.zeros else ""
        return f"{progress.percent:5.1f}%", size, rate, remaining, zeros

    def _more_texts(self) -> tuple[str, str]:
        """The rate on average, and who copies; empty where it says nothing new."""
        progress, elapsed = self._moves, self._now() - self._started
        if progress.phase in {"open", "done", "failed"} or not progress.done or elapsed <= 0:
            return "", ""
        workers = f"{self.workers} worker{'s' if self.workers != 1 else ''}" if self.workers else ""
        return f"{human(progress.done / elapsed)}/s on average", workers

    def finish(self) -> None:
        if not self._live.is_started:
            return
        self._draw()
        try:
            self._live.stop()
        except (OSError, ValueError):
            self._broken = True

    def dump(self) -> None:
        if self._shares and self._live.is_started and not self._broken:
            self._console.print(Text(str(self._progress)), soft_wrap=True)
        else:
            super().dump()
