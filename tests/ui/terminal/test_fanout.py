"""What is shown of many jobs."""

from __future__ import annotations

import io
import json
import re

from mpconv.ui.terminal.fanout import JsonOfMany, LineOfMany, Many
from mpconv.ui.terminal.table import LiveTable

MiB = 1 << 20


def of(kind: type[Many]) -> tuple[Many, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    made = kind(out, err)
    made.add("one", 0, 0, over=False)
    made.add("two", 0, 0, over=False)
    made.add("old", 4 * MiB, 4 * MiB, over=True)
    return made, out, err


def test_each_line_names_its_job():
    shown, out, _ = of(JsonOfMany)
    shown.update("one", 0, 0, 0, "open")
    shown.update("two", 0, 0, 0, "open")
    shown.update("one", 3 * MiB, 4 * MiB, MiB, "copy")
    shown.update("two", 0, 0, 0, "waiting")
    shown.update("one", 4 * MiB, 4 * MiB, MiB, "done")
    shown.finish()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["job"], line["phase"], line["done"]) for line in lines] == [
        ("one", "open", 0),
        ("two", "open", 0),
        ("one", "copy", 3 * MiB),
        ("two", "waiting", 0),
        ("one", "done", 4 * MiB),
    ]
    assert all(next(iter(line)) == "job" for line in lines)


def test_one_line_for_all_counts_each_job_alike():
    shown, out, _ = of(LineOfMany)
    shown.update("one", MiB, 4 * MiB, 0, "copy")
    shown.update("two", 0, 0, 0, "done")
    shown.update("one", 4 * MiB, 4 * MiB, 0, "done")
    shown.finish()
    assert [part.strip() for part in out.getvalue().split("\r")] == [
        "(41.66/100%)",
        "(75.00/100%)",
        "(100.00/100%)",
        "",
    ]


def test_a_job_that_waits_for_a_server_says_so_until_it_goes_on():
    out = io.StringIO()
    shown = LiveTable(out, io.StringIO(), now=lambda: float(len(out.getvalue())))
    shown.add("one", 0, 0, over=False)
    shown.update("one", MiB, 4 * MiB, 0, "copy")
    shown.retrying("one", 2)
    assert "retrying for 0:00" in out.getvalue()
    at = len(out.getvalue())
    shown.tick()
    assert re.search(r"retrying for \d+:\d\d", out.getvalue()[at:]) and "0:00" not in out.getvalue()[at:]
    shown.retrying("one", 0)
    at = len(out.getvalue())
    shown.tick()
    shown.finish()
    assert "one" in out.getvalue()[at:] and "retrying" not in out.getvalue()[at:]


def test_a_line_on_demand():
    shown, out, err = of(Many)
    shown.update("one", MiB, 4 * MiB, 0, "copy")
    shown.dump()
    assert err.getvalue() == "1 of 3 jobs over, 1 running, 5 MiB done\n"
    assert out.getvalue() == ""


def test_a_terminal_shows_those_that_run_and_all_together():
    shown, out, _ = of(LiveTable)
    shown.update("one", 2 * MiB, 4 * MiB, 0, "copy")
    shown.update("two", 0, 0, 0, "waiting")
    shown.update("one", 4 * MiB, 4 * MiB, 0, "done")
    shown.finish()
    assert "50.0%" in out.getvalue() and "1 of 3 jobs" in out.getvalue() and "2 of 3 jobs" in out.getvalue()
    assert "two" not in out.getvalue()


def test_a_stream_that_takes_no_more_ends_the_display_alone():
    shown, out, _ = of(LiveTable)
    out.close()
    shown.update("one", 2 * MiB, 4 * MiB, 0, "copy")
    shown.update("one", 4 * MiB, 4 * MiB, 0, "done")
    shown.finish()
