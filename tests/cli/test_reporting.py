"""What a job tells people."""

from __future__ import annotations

import io

import pytest

from mpconv.cli.output.copy import Report
from mpconv.ui.terminal.display import make_display


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([(512, 512, "bad"), (0, 512, "bad")], [(0, 1024, "bad")]),
        ([(0, 512, "bad"), (512, 512, "worse")], [(0, 512, "bad"), (512, 512, "worse")]),
        ([(0, 512, "bad"), (1024, 512, "bad")], [(0, 512, "bad"), (1024, 512, "bad")]),
        ([(0, 1024, "bad"), (0, 1024, "bad"), (512, 512, "bad")], [(0, 1024, "bad")]),
        ([(0, 512, "bad"), (0, 1024, "bad")], [(0, 1024, "bad")]),
        ([(0, 1024, "bad"), (512, 1024, "worse")], [(0, 1024, "bad"), (1024, 512, "worse")]),
    ],
    ids=["neighbours", "another reason", "apart", "told again", "more the second time", "another reason again"],
)
def test_each_lost_byte_is_told_of_once(told, expected):
    report = Report(make_display("none", io.StringIO(), io.StringIO()), quiet=True, verbose=False)
    for start, length, why in told:
        report.lost([(start, length)], why)
    assert report.lost_ranges() == expected


def test_a_warning_that_nobody_reads_is_no_error(monkeypatch, capsys):
    report = Report(make_display("none", io.StringIO(), io.StringIO()), quiet=True, verbose=False)
    report.warn("so it is")
    assert capsys.readouterr().err == "mpconv: warning: so it is\n"
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    report.warn("so it is")


@pytest.mark.parametrize(
    ("checked", "quiet", "verbose", "words"),
    [
        (2048, False, False, "mpconv: verified 2 KiB of 4 KiB\n"),
        (4096, False, False, ""),
        (4096, False, True, "mpconv: verified 4 KiB of 4 KiB\n"),
        (2048, True, False, ""),
    ],
)
def test_how_much_was_verified_is_told_when_it_is_not_all(capfd, checked, quiet, verbose, words):
    with Report(make_display("none", io.StringIO(), io.StringIO()), quiet=quiet, verbose=verbose) as report:
        report.verified(checked, 4096)
        report.digest("xxh3-64k:0", "b.raw")
    assert capfd.readouterr() == ("xxh3-64k:0  b.raw\n", words)


def test_a_job_that_fails_tells_no_results(capfd):
    with (
        pytest.raises(ValueError, match="so"),
        Report(make_display("none", io.StringIO(), io.StringIO()), quiet=False, verbose=True) as report,
    ):
        report.verified(1024, 4096)
        report.digest("xxh3-64k:0", "b.raw")
        raise ValueError("so")
    assert capfd.readouterr() == ("", "")
