"""A line for each job that runs, and one for all of them, on a terminal, drawn by rich."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from mpconv.model.units import duration, human
from mpconv.ui.terminal.fanout import OVER, Many, share_of
from mpconv.ui.terminal.progress import Clock, Progress
from mpconv.ui.terminal.speed import Speed

_SECONDS_BETWEEN = 0.2
_BAR = 20
_GAP = 2
_SHORTEST = 4
"""Columns that names have at least."""


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
        _, passed = self._skipped.get(name, (0, 0))
        self._speeds.setdefault(name, Speed()).update(row.done - passed, now)
        if now - self._drawn_at >= _SECONDS_BETWEEN or row.phase in OVER:
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        if self._broken:
            return
        self._total.update(sum(self._moves(name).done for name in self.rows), now)
        try:
            self._live.start()
            self._live.update(self._table(now), refresh=True)
        except (OSError, ValueError):
            self._broken = True

    def _table(self, now: float) -> Table:
        moves = {name: self._moves(name) for name in self.rows}
        over = sum(row.phase in OVER for row in moves.values())
        rate = self._total.rate()
        shown = [(name, row) for name, row in moves.items() if row.phase not in (*OVER, "waiting")]
        share = share_of(moves.values())
        lines = [(row.percent, self._texts(name, row, now)) for name, row in shown]
        done = sum(row.done for row in moves.values())
        last = [f"{over} of {len(moves)} jobs", f"{100 * share:5.1f}%", human(done)]
        last += [f"{human(rate)}/s" if rate > 0 else "", duration(now - self._started)]
        lines.append((100 * share, last))
        columns = list(zip(*(texts for _, texts in lines), strict=True))
        widths = [max(map(cell_len, column)) + _GAP for column in columns]
        room = self._console.width - sum(widths[1:])
        wide = room >= widths[0] + _BAR + _GAP
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        # Only names may be cut, and bars left out: figures that are cut say something else.
        grid.add_column(no_wrap=True, max_width=max(_SHORTEST, room - _GAP))
        for width in widths[1:]:
            grid.add_column(no_wrap=True, min_width=width - _GAP)
        if wide:
            grid.columns.insert(2, Column(no_wrap=True))
        for number, (percent, texts) in enumerate(lines):
            style = "bold" if number == len(shown) else ""
            cells: list[Text | ProgressBar] = [Text(texts[0], style), Text(texts[1], style), *map(Text, texts[2:4])]
            cells.append(Text(texts[4], "yellow" if number < len(shown) and shown[number][0] in self._retrying else ""))
            if wide:
                cells.insert(2, ProgressBar(total=100, completed=percent, width=_BAR))
            grid.add_row(*cells)
        return grid

    def _texts(self, name: str, row: Progress, now: float) -> list[str]:
        """Name, percentage, bytes, rate, and what it is at."""
        speed = self._speeds[name]
        left = speed.left(row.total)
        what = row.phase if row.phase != "copy" else "" if left is None else f"{duration(left)} left"
        if name in self._retrying:
            what = f"retrying for {duration(now - self._retrying[name])}"
        opened = row.phase != "open"
        return [
            name,
            f"{row.percent:5.1f}%",
            f"{human(row.done)} of {human(row.total)}" if opened else "",
            f"{human(speed.rate())}/s" if speed.rate() > 0 and opened else "",
            what,
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
