"""What a fan-out tells: a line for each job that ends, progress, and at the end a table or an object."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mpconv.cli.options.command import show, show_text
from mpconv.coordination.observer import Observer
from mpconv.jobs.fanout.journal_dir import resume_with
from mpconv.jobs.fanout.observer import FanoutObserver
from mpconv.jobs.fanout.spec import Outcome, Result
from mpconv.model.errors import Deserted, UsageError, one_line
from mpconv.model.names import readable_values
from mpconv.model.units import human
from mpconv.ui.terminal.fanout import JsonOfMany, LineOfMany, Many

if TYPE_CHECKING:
    from mpconv.workers.launch.dask_cluster import Placement


class FanoutReport(FanoutObserver):
    """Passes on what the jobs tell to the display and, for people, to stderr."""

    def __init__(self, display: Many, *, quiet: bool, verbose: bool, placement: Placement | None = None) -> None:
        self._display = display
        self._quiet = quiet
        self._verbose = verbose
        self._began = time.monotonic()
        self._placement = placement
        if placement is not None:
            placement.warn, placement.said = self.warn, self.said

    def __enter__(self) -> FanoutReport:
        return self

    def __exit__(self, *_: object) -> None:
        self._display.finish()

    def job(self, outcome: Outcome) -> Observer:
        self._display.add(outcome.name, outcome.done, outcome.size, over=outcome.result is Result.WRITTEN)
        return _JobReport(outcome, self._display, self)

    def began(self, outcome: Outcome) -> None:
        self._display.update(outcome.name, outcome.done, outcome.size, outcome.zeros, "open")

    def again(self, outcome: Outcome, why: str, seconds: float) -> None:
        self.warn(f"{outcome.name}: {why}; it begins again in {seconds:.0f} s")
        self._display.update(outcome.name, outcome.done, outcome.size, outcome.zeros, "waiting")

    def ended(self, outcome: Outcome) -> None:
        phase = "done" if outcome.result is Result.WRITTEN else "failed"
        self._display.update(outcome.name, outcome.done, outcome.size, outcome.zeros, phase)
        if outcome.result is Result.WRITTEN:
            if not self._quiet:
                self.say(f"{outcome.name}: written to '{one_line(outcome.target)}' ({_amount(outcome)})")
        else:
            self.say(f"{outcome.name}: {outcome.result.value}: {outcome.why}")

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        self.said(f"workers of other hosts may connect to {endpoint}")
        if self._placement is not None:
            self._placement.begin(endpoint, give_up)

    def say(self, text: str) -> None:
        """A broken stderr does not end the jobs."""
        with contextlib.suppress(OSError, ValueError):
            print(f"mpconv: {one_line(text)}", file=sys.stderr)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def said(self, text: str) -> None:
        """How something is done."""
        if self._verbose:
            self.say(text)

    def tell(self, outcomes: list[Outcome], *, as_json: bool, journal: str | None) -> int:
        """What became of all, when they are over: how many are not written."""
        left = [outcome for outcome in outcomes if outcome.result is not Result.WRITTEN]
        among_lines = isinstance(self._display, JsonOfMany)
        if as_json or among_lines:
            facts = self._facts(outcomes, len(left), journal)
            show_text(json.dumps(readable_values(facts), indent=None if among_lines else 4) + "\n")
        elif not self._quiet:
            show(table(outcomes))
        if left:
            self.say(f"{len(outcomes) - len(left)} of {len(outcomes)} jobs are written")
            if journal is not None:
                self.say(f"go on with: {resume_with(journal)}")
        return len(left)

    def _facts(self, outcomes: list[Outcome], left: int, journal: str | None) -> dict[str, object]:
        return {
            "written": len(outcomes) - left,
            "jobs": [_fact(outcome) for outcome in outcomes],
            "seconds": round(time.monotonic() - self._began, 3),
            "journal": journal,
        }


class _JobReport(Observer):
    """One job's part of it."""

    def __init__(self, outcome: Outcome, display: Many, whole: FanoutReport) -> None:
        self._name = outcome.name
        self._display = display
        self._whole = whole
        self._phase = "copy"
        self._seen = (outcome.done, outcome.size, outcome.zeros)

    def progress(self, done: int, total: int, zeros: int) -> None:
        self._seen = (done, total, zeros)
        self._display.update(self._name, *self._seen, self._phase)

    def phase(self, name: str) -> None:
        self._phase = name
        self._display.update(self._name, *self._seen, name)

    def skips(self, known: int, passed: int) -> None:
        self._display.skips(self._name, known, passed)

    def retrying(self, count: int, why: str) -> None:
        self._display.retrying(self._name, count)

    def tick(self) -> None:
        self._display.tick()

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        for start, length in ranges:
            self.warn(f"lost bytes {start} to {start + length - 1} ({length}), now zeros: {why}")

    def said(self, text: str) -> None:
        self._whole.said(f"{self._name}: {text}")

    def warn(self, text: str) -> None:
        self._whole.warn(f"{self._name}: {text}")


def _fact(outcome: Outcome) -> dict[str, object]:
    return {
        "job": outcome.name,
        "target": outcome.target,
        "result": outcome.result.value,
        "why": outcome.why,
        "done": outcome.done,
        "size": outcome.size,
        "zero": outcome.zeros,
        "seconds": round(outcome.seconds, 3),
        "attempts": outcome.attempts,
        "digest": outcome.digest,
        "verified": outcome.verified,
        "lost": outcome.lost,
    }


def _amount(outcome: Outcome) -> str:
    return f"{human(outcome.size)} in {outcome.seconds:.1f} s"


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """For people: a line for each job, in columns."""
    outcomes = list(outcomes)
    digests = any(outcome.digest for outcome in outcomes)
    rows = [["job", "result", "bytes", "seconds", *(["digest"] if digests else []), "target"]]
    for outcome in outcomes:
        digest = [outcome.digest or "-"] if digests else []
        seconds = f"{outcome.seconds:.1f}"
        rows.append([outcome.name, outcome.result.value, size_of(outcome), seconds, *digest, one_line(outcome.target)])
    return columns(rows)


def size_of(outcome: Outcome) -> str:
    """How much of it is done."""
    done = human(outcome.done)
    return done if outcome.done == outcome.size else f"{done} of {human(outcome.size)}"


def columns(rows: list[list[str]]) -> list[str]:
    """One line a row; what follows the last column is not filled up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def display_for(options: dict[str, Any]) -> Many:
    """What `-p`, `--progress` and `-q` ask for. What is for programs has stdout alone."""
    kind = options["progress_kind"] or "text"
    if not (options["progress"] or options["progress_kind"]) or options["quiet"]:
        return Many(sys.stdout, sys.stderr)
    if kind == "json":
        return JsonOfMany(sys.stdout, sys.stderr)
    if kind != "text":
        raise UsageError(f"Invalid progress kind '{kind}': text or json")
    stream = sys.stderr if options["as_json"] else sys.stdout
    if not stream.isatty() or os.environ.get("TERM", "dumb") in {"", "dumb", "unknown"}:
        return LineOfMany(stream, sys.stderr)
    from mpconv.ui.terminal.table import LiveTable  # noqa: PLC0415  (rich takes a tenth of a second to import)

    return LiveTable(stream, sys.stderr)
