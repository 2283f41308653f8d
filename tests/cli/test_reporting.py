"""What a job tells people."""

from __future__ import annotations

import io

import pytest

from mpconv.cli.reporting import Report
from mpconv.ui.progress import make_display


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
