"""A line for each job that runs, and one for all of them, on a terminal, drawn by rich."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mpconv.ui.many import OVER, Many
from mpconv.ui.progress import Clock, Progress
from mpconv.ui.speed import Speed
from mpconv.units import duration, human

_SECONDS_BETWEEN = 0.2
_BAR = 20
_NARROW = 80
"""Columns below which the bars are left out."""


class LiveTable(Many):
    """Drawn from `update`, without a thread. What is printed to stderr meanwhile goes above it."""

    def __init__(self, stream: TextIO, error_stream: TextIO, now: Clock = time.monotonic) -> None:
        super().__init__(stream, error_stream)
        self._now = now
        self._drawn_at = 0.0
        self._started = now()
        self._speeds: dict[str, Speed] = {}
        self._total = Speed()
        self._skipped: dict[str, tuple[int, int]] = {}
        self._retrying: dict[str, float] = {}
        self._broken = False
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        shares = error_stream.isatty() and error_stream is sys.stderr
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=shares, transient=True
        )

    def skips(self, name: str, known: int, passed: int) -> None:
        self._skipped[name] = (known, passed)

    def retrying(self, name: str, count: int) -> None:
        now = self._now()
        if count:
            self._retrying.setdefault(name, now)
        else:
            self._retrying.pop(name, None)
        self._draw(now)

    def tick(self) -> None:
        now = self._now()
        if self._live.is_started and now - self._drawn_at >= _SECONDS_BETWEEN:
            for name, row in self.rows.items():
                if name in self._speeds and row.phase not in (*OVER, "waiting"):
                    self._speeds[name].update(self._moves(name).done, now)
            self._draw(now)

    def _moves(self, name: str) -> Progress:
        """How far the job is of what it must move."""
        return self.rows[name].without(*self._skipped.get(name, (0, 0)))

    def _show(self, name: str) -> None:
        now, row = self._now(), self.rows[name]
        if row.phase in ("open", "waiting"):
            self._speeds[name] = Speed()
            self._skipped.pop(name, None)
            self._retrying.pop(name, None)
        self._speeds.setdefault(name, Speed()).update(self._moves(name).done, now)
        if now - self._drawn_at >= _SECONDS_BETWEEN or row.phase in OVER:
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        if self._broken:
            return
        self._total.update(self.done, now)
        try:
            self._live.start()
            self._live.update(self._table(now), refresh=True)
        except (OSError, ValueError):
            self._broken = True

    def _table(self, now: float) -> Table:
        wide = self._console.width >= _NARROW
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(5 + wide):
            grid.add_column(no_wrap=True)
        for name, row in self.rows.items():
            if row.phase not in (*OVER, "waiting"):
                grid.add_row(*self._cells(name, self._moves(name), wide, now))
        over = sum(row.phase in OVER for row in self.rows.values())
        rate = self._total.rate()
        grid.add_row(
            Text(f"{over} of {len(self.rows)} jobs", "bold"),
            Text(f"{100 * self.share:5.1f}%", "bold"),
            *([ProgressBar(total=100, completed=100 * self.share, width=_BAR)] if wide else []),
            Text(human(self.done)),
            Text(f"{human(rate)}/s" if rate > 0 else ""),
            Text(duration(now - self._started)),
        )
        return grid

    def _cells(self, name: str, row: Progress, wide: bool, now: float) -> list[Text | ProgressBar]:
        speed = self._speeds[name]
        left = speed.left(row.total)
        what = row.phase if row.phase != "copy" else "" if left is None else f"{duration(left)} left"
        waits = name in self._retrying
        if waits:
            what = f"retrying for {duration(now - self._retrying[name])}"
        return [
            Text(name),
            Text(f"{row.percent:5.1f}%"),
            *([ProgressBar(total=100, completed=row.percent, width=_BAR)] if wide else []),
            Text(f"{human(row.done)} of {human(row.total)}" if row.phase != "open" else ""),
            Text(f"{human(speed.rate())}/s" if speed.rate() > 0 and row.phase != "open" else ""),
            Text(what, "yellow" if waits else ""),
        ]

    def finish(self) -> None:
        if self._live.is_started:
            try:
                self._live.stop()
            except (OSError, ValueError):
                self._broken = True

    def dump(self) -> None:
        if self._live.is_started and not self._broken:
            self._console.print(Text(self.summary), soft_wrap=True)
        else:
            super().dump()
