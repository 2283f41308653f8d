"""The displays that write plain text, against strings; qemu-img is asked for its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpconv.model.errors import UsageError
from mpconv.ui.terminal.display import make_display
from mpconv.ui.terminal.progress import JsonLines, Progress, ProgressLine, Silent
from mpconv.ui.terminal.speed import Speed


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_text_is_qemus(tmp_path: Path) -> None:
    source = tmp_path / "a.raw"
    source.write_bytes(os.urandom(3_000_320))
    command = ["qemu-img", "convert", "-p", "-O", "raw", str(source), str(tmp_path / "b.raw")]
    theirs = subprocess.run(command, capture_output=True, check=True).stdout.decode()

    stream = io.StringIO()
    line = ProgressLine(stream)
    for done in (0, 2 << 20, 3_000_320):
        line.update(done, 3_000_320)
    line.finish()
    assert stream.getvalue() == "    (0.00/100%)\r    (69.90/100%)\r    (100.00/100%)\r\n"
    assert list(dict.fromkeys(theirs.split("\r"))) == stream.getvalue().split("\r")


def test_text_is_printed_by_steps_of_more_than_a_point() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    for done in (0, 5, 100, 101, 150, 201, 202, 9999, 10000, 10000):
        line.update(done, 10000)
    assert stream.getvalue().split("\r") == [
        "    (0.00/100%)",
        "    (1.01/100%)",
        "    (2.02/100%)",
        "    (99.99/100%)",
        "    (100.00/100%)",
        "",
    ]


def test_text_of_an_empty_image_and_of_one_that_is_not_open_yet() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.update(0, 0, 0, "open")
    line.update(0, 0, 0, "copy")
    assert stream.getvalue() == "    (0.00/100%)\r    (100.00/100%)\r"


def test_text_goes_back_when_a_copy_begins_anew() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    for done in (50, 30, 30, 31, 32):
        line.update(done, 100)
    assert stream.getvalue() == "    (50.00/100%)\r    (30.00/100%)\r    (32.00/100%)\r"


@pytest.mark.parametrize("kind", ["none", "text", "json"])
def test_a_line_on_request_goes_to_stderr(kind: str) -> None:
    stream, errors = io.StringIO(), io.StringIO()
    display = make_display(kind, stream, errors)
    display.dump()
    display.update(1234, 10000)
    before = stream.getvalue()
    display.dump()
    assert errors.getvalue() == "    (0.00/100%)\n    (12.34/100%)\n"
    assert stream.getvalue() == before


def test_silence() -> None:
    stream, errors = io.StringIO(), io.StringIO()
    display = make_display("none", stream, errors)
    display.update(1, 2)
    display.lost([(0, 512, "Input/output error")])
    display.finish()
    assert isinstance(display, Silent)
    assert (stream.getvalue(), errors.getvalue()) == ("", "")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="Invalid progress kind 'xml'"):
        make_display("xml", io.StringIO(), io.StringIO())


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def test_json_lines(clock: Clock) -> None:
    stream = io.StringIO()
    display = JsonLines(stream, io.StringIO(), now=clock)
    display.update(0, 1, 0, "open")
    clock.time += 1
    display.update(0, 4000, 0, "copy")
    clock.time += 2
    display.update(1000, 4000, 200, "copy")
    clock.time += 1
    display.update(4000, 4000, 200, "flush")
    clock.time += 1
    display.update(4000, 4000, 200, "done")
    display.finish()
    assert lines(stream) == [
        {"phase": "open", "done": 0, "total": 1, "zero": 0, "rate": 0, "eta": None, "elapsed": 0.0, "retrying": 0},
        {"phase": "copy", "done": 0, "total": 4000, "zero": 0, "rate": 0, "eta": None, "elapsed": 1.0, "retrying": 0},
        {
            "phase": "copy",
            "done": 1000,
            "total": 4000,
            "zero": 200,
            "rate": 333,
            "eta": 9.0,
            "elapsed": 3.0,
            "retrying": 0,
        },
        {
            "phase": "flush",
            "done": 4000,
            "total": 4000,
            "zero": 200,
            "rate": 1000,
            "eta": 0.0,
            "elapsed": 4.0,
            "retrying": 0,
        },
        {
            "phase": "done",
            "done": 4000,
            "total": 4000,
            "zero": 200,
            "rate": 800,
            "eta": 0.0,
            "elapsed": 5.0,
            "retrying": 0,
        },
    ]


def test_json_tells_at_once_of_workers_that_wait_for_a_server(clock: Clock) -> None:
    stream = io.StringIO()
    display = JsonLines(stream, io.StringIO(), now=clock)
    display.update(0, 4000)
    display.retrying(2, "'b' does not answer")
    display.retrying(0, "")
    display.update(4000, 4000, 0, "done")
    display.retrying(0, "")
    display.finish()
    assert [line["retrying"] for line in lines(stream)] == [0, 2, 0, 0]


def test_what_needs_no_work_is_left_out_of_what_must_be_moved() -> None:
    progress = Progress(60, 100, 50, "copy")
    assert progress.without(70, 40) == Progress(20, 30, 10, "copy")
    assert progress.without(100, 60) == Progress(0, 0, 0, "copy")


def test_json_comes_four_times_a_second_and_never_without_the_last(clock: Clock) -> None:
    stream = io.StringIO()
    display = JsonLines(stream, io.StringIO(), now=clock)
    for done in range(1001):
        display.update(done, 1000)
        clock.time += 1 / 128
    display.finish()
    written = lines(stream)
    assert [line["done"] for line in written] == [*range(0, 993, 32), 1000]
    display.finish()
    assert lines(stream) == written


def test_json_of_a_failed_job_has_no_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    display = JsonLines(stream, io.StringIO(), now=clock)
    display.update(0, 1000)
    clock.time += 1
    display.update(500, 1000, 0, "failed")
    display.finish()
    assert [(line["phase"], line["done"], line["eta"]) for line in lines(stream)] == [
        ("copy", 0, None),
        ("failed", 500, None),
    ]


def test_json_ends_with_what_was_lost() -> None:
    stream = io.StringIO()
    display = JsonLines(stream, io.StringIO())
    display.lost([])
    assert stream.getvalue() == ""
    display.lost([(512, 1024, "Input/output error")])
    assert lines(stream) == [{"lost": [{"start": 512, "length": 1024, "why": "Input/output error"}]}]


def test_the_documented_keys_are_those_that_are_written() -> None:
    stream = io.StringIO()
    JsonLines(stream, io.StringIO()).update(0, 1)
    page = (Path(__file__).parents[3] / "docs" / "progress.md").read_text()
    table = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    example = [json.loads(line) for line in page.splitlines() if line.startswith("{")]
    assert table == list(lines(stream)[0])
    assert all(list(line) == table for line in example if "lost" not in line)
    assert example[0]["phase"] == "open" and any("lost" in line for line in example)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_reader_that_goes_away_does_not_stop_the_job(kind: str) -> None:
    script = (
        "import sys; from mpconv.ui.terminal.display import make_display\n"
        "d = make_display(sys.argv[1], sys.stdout, sys.stderr)\n"
        "for done in range(0, 100000):\n d.update(done, 100000, 0, 'copy' if done % 2 else 'flush')\n"
        "d.finish(); d.dump()"
    )
    child = subprocess.Popen([sys.executable, "-c", script, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr.read() == b"    (100.00/100%)\n"
    assert child.wait(timeout=30) == 0


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    speed = Speed()
    assert (speed.rate(), speed.left(100)) == (0.0, None)
    for second in range(20):
        speed.update(second * 1000, float(second))
    for second in range(20, 41):
        speed.update(19_000 + (second - 19) * 10, float(second))
    assert speed.rate() == 10.0
    assert speed.left(19_210 + 50) == 5.0
    speed.update(0, 41.0)
    assert speed.rate() == 0.0
    assert speed.left(0) == 0.0
