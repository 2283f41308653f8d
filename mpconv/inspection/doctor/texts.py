"""An examination for people: aligned, one screen. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from mpconv.inspection.doctor.findings import Examination, Finding, milliseconds
from mpconv.model.errors import one_line
from mpconv.model.units import human

_NAME = 14
WIDTH = 100
"""Columns, where nobody says how many there are."""
_NARROWEST = 60


def lines(found: Examination, width: int = WIDTH) -> Iterator[str]:
    """All that is known of one URL, in so many columns, as far as no word is longer."""
    width = max(_NARROWEST, min(width, WIDTH))
    yield one_line(found.url) + (f"  ({found.role})" if found.role else "")
    for fact in found.facts:
        yield from _row(fact.name.replace("-", " "), fact.text, width)
    if found.cells:
        yield ""
        yield f"  {'request':<14}{'in flight':>9}  {'takes':>9}  {'at worst':>9}  {'throughput':>14}"
        for cell in found.cells:
            what = f"{'write' if cell.writes else 'read'} {human(cell.size)}"
            times = f"{milliseconds(cell.median):>9}  {milliseconds(cell.worst):>9}"
            yield f"  {what:<14}{cell.depth:>9}  {times}  {human(cell.rate) + '/s':>14}"
    if found.choice is not None:
        yield ""
        choice = f"--workers {found.choice.workers} -m {found.choice.requests}"
        yield from _row("mpconv chooses", f"{choice}: {found.choice.why}", width)
    for kind, several in (("PROBLEM", found.problems), ("advice", found.advice)):
        for one in several:
            yield ""
            yield from _finding(kind, one, width)


def summary(found: list[Examination]) -> str:
    """The last line."""
    problems = sum(len(one.problems) for one in found)
    advice = sum(len(one.advice) for one in found)
    pieces = advice and f", {advice} piece{'' if advice == 1 else 's'} of advice"
    if not problems:
        return f"nothing is in the way{pieces or ''}"
    return f"{problems} problem{'' if problems == 1 else 's'}{pieces or ''}"


def _row(name: str, text: str, width: int) -> Iterator[str]:
    head = f"  {name:<{_NAME}}  "
    wrapped = textwrap.wrap(one_line(text), width - len(head), break_long_words=False, break_on_hyphens=False) or [""]
    yield head + wrapped[0]
    for more in wrapped[1:]:
        yield " " * len(head) + more


def _finding(kind: str, one: Finding, width: int) -> Iterator[str]:
    yield from _row(kind, one.what, width)
    yield from _row("  to do", one.fix, width)
