"""The live bar, as a terminal shows it: each test runs it on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.support.terminal import screen

SCRIPT = """
import sys
from mpconv.ui.terminal.display import make_display
display = make_display("text", sys.stdout, sys.stderr)
MiB = 1 << 20
display.update(0, 1, 0, "open")
{body}
display.finish()
"""
COPY = """
for done in range(0, 101):
    display.update(done * MiB, 100 * MiB, done * MiB // 4)
display.update(100 * MiB, 100 * MiB, 25 * MiB, "flush")
display.update(100 * MiB, 100 * MiB, 25 * MiB, "done")
"""


def run(body: str, columns: int = 80, *, stderr_too: bool = True, **env: str) -> str:
    """What a process writes to its terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    dropped = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    environment = {**{k: v for k, v in os.environ.items() if k not in dropped}, "TERM": "xterm-256color", **env}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        stdin=slave,
        stdout=slave,
        stderr=slave if stderr_too else subprocess.DEVNULL,
        env=environment,
    )
    os.close(slave)
    written = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        written += piece
    os.close(master)
    assert child.wait(timeout=30) == 0
    return written.decode()


def test_the_last_line_tells_how_it_ended() -> None:
    [line] = screen(run(COPY))
    told = r"100\.0% ━+ 100 MiB of 100 MiB \S+ \S+iB/s in 0:0\d 25 MiB zeros"
    assert re.fullmatch(told, " ".join(line.split())), line


def test_holes_are_no_part_of_what_must_be_moved() -> None:
    body = "display.known, display.passed = 60 * MiB, 40 * MiB\n"
    text = run(body + "display.update(50 * MiB, 100 * MiB, 45 * MiB)", 120)
    [line] = screen(text, 120)
    assert line.startswith(" 25.0%") and "10 MiB of 40 MiB" in line and "45 MiB zeros" in line


def test_a_summary_takes_the_place_of_the_bar() -> None:
    last = 'display.update(100 * MiB, 100 * MiB, 25 * MiB, "done")'
    told = "copied 100 MiB in 0.1 s"
    assert screen(run(COPY.replace(last, f"display.summary('{told}')\n{last}"))) == [told]


def test_it_tells_who_waits_for_a_server_and_for_how_long_until_they_go_on() -> None:
    waits = """
import time
display.update(25 * MiB, 100 * MiB)
display.retrying(2, "'iscsi://10.0.0.5/iqn.2020-01.org.example:disk/1' does not answer (Connection refused)")
time.sleep(1.2)
display.tick()
"""
    bar, told = screen(run(waits + "display._live.stop()\nsys.exit()"))
    assert bar.startswith(" 25.0%")
    assert told.startswith("retrying for 0:01 (2 workers): 'iscsi://10.0.0.5/iqn") and told.endswith("…")
    for after in ("display.retrying(0, '')\n", "display.update(25 * MiB, 100 * MiB, 0, 'failed')\n"):
        assert not [line for line in screen(run(waits + after)) if "retrying" in line]


def test_on_the_way_it_says_what_is_left() -> None:
    text = run("import time\nfor n in range(5):\n    display.update(n * MiB, 100 * MiB)\n    time.sleep(0.15)\n")
    assert re.search(r"\d+\.\d%", text)
    assert "opening" in text
    assert re.search(r"\d:\d\d left", text)
    assert re.search(r"MiB/s", text)


def test_reading_back_is_told_apart_from_copying() -> None:
    steps = [f"display.update({done} * MiB, 100 * MiB, 0, 'verify')" for done in (0, 50)]
    text = run("\ntime.sleep(0.15)\n".join(["import time", *steps]))
    assert "verifying" in text and re.search(r"verifying, \d:\d\d left", text)


def test_a_failure_keeps_the_percentage() -> None:
    [line] = screen(run("display.update(30 * MiB, 100 * MiB)\ndisplay.update(30 * MiB, 100 * MiB, 0, 'failed')"))
    assert line.split()[0] == "30.0%"
    assert "failed after 0:0" in line
    assert "30 MiB of 100 MiB" in line


@pytest.mark.parametrize("columns", [8, 20, 30, 40, 60, 200])
def test_it_fits_into_any_terminal(columns: int) -> None:
    [line] = screen(run(COPY, columns), columns)
    assert line.startswith("100.0%")
    assert ("100 MiB of 100 MiB" in line) == (columns >= 60)
    assert ("zeros" in line) == (columns >= 70)


def test_the_cursor_is_shown_again() -> None:
    text = run(COPY)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_no_color() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])[0-9;]*m")
    assert colour.search(run(COPY))
    plain = run(COPY, NO_COLOR="1")
    assert not colour.search(plain)
    assert screen(plain)[0].startswith("100.0%")


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_dumb_terminal_gets_qemus_text(term: str) -> None:
    text = run(COPY, TERM=term)
    assert "\x1b" not in text
    assert text.startswith("    (0.00/100%)\r    (2.00/100%)\r")
    assert text.endswith("    (100.00/100%)\r\r\n")


def test_warnings_go_above_the_bar() -> None:
    body = "display.update(MiB, 4 * MiB)\nprint('mpconv: warning: huh', file=sys.stderr)\n" + COPY
    first, last = screen(run(body))
    assert first == "mpconv: warning: huh"
    assert last.startswith("100.0%")


def test_sigusr1_prints_above_the_bar() -> None:
    body = "import signal, os\nsignal.signal(signal.SIGUSR1, lambda *_: display.dump())\n"
    body += "display.update(MiB, 4 * MiB)\nos.kill(os.getpid(), signal.SIGUSR1)\n" + COPY
    first, last = screen(run(body))
    assert first == "    (25.00/100%)"
    assert last.startswith("100.0%")


def test_stderr_elsewhere_stays_elsewhere() -> None:
    body = "display.update(MiB, 4 * MiB)\nprint('a warning', file=sys.stderr)\ndisplay.dump()\n" + COPY
    [line] = screen(run(body, stderr_too=False))
    assert line.startswith("100.0%")


def test_a_terminal_is_needed_for_rich_alone() -> None:
    script = "import sys, io\nfrom mpconv.ui.terminal.display import make_display\n"
    script += "make_display('text', io.StringIO(), sys.stderr)\n"
    script += "assert not [name for name in sys.modules if name.startswith('rich')]"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_a_wide_terminal_shows_the_average_and_who_copies():
    body = """
display.workers = 2
display.update(50 * MiB, 100 * MiB)
print()
"""
    wide = run(body, 160)
    assert "2 workers" in wide and "/s on average" in wide
    assert "on average" not in run(body, 50)
