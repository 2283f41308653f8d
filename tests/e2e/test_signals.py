"""Signals that all processes of a group get: as those that only the command gets, with nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import make_image
from tests.e2e.test_faults import ENDLESS, Running, one_line

MiB = 1 << 20
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
SLOW = ("-r", "4M", "null:?size=1G", "null:")
PLAN = """[limits]
rate = "8M"
[[job]]
name = "a"
source = "{0}/a.raw"
target = "{0}/b.raw"
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files, if there are any, would be made there."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setenv("TMPDIR", str(made))
    return made


def stop_all(copy: Running, number: int) -> None:
    """As timeout(1) does: the command gets it twice."""
    copy.process.send_signal(number)
    os.killpg(copy.process.pid, number)


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("convert", ("--workers", 3, *ENDLESS)),
        ("deploy", ("-r", "4M", "null:?size=1G", "null:", "null:")),
        ("compare", ("null:?size=16T", "null:?size=16T")),
        ("checksum", ("null:?size=16T",)),
    ],
)
def test_a_signal_for_all(directory: Path, command: str, arguments: tuple[object, ...], number: int):
    copy = Running(*arguments, command=command)
    copy.until_it_moves()
    stop_all(copy, number)
    code, words = copy.end()
    assert code == 128 + number
    one_line(words, WORDS[number])
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_written_is_in_the_journal(directory: Path, tmp_path: Path, number: int):
    make_image(tmp_path / "a.raw", 24 * MiB)
    journal = tmp_path / "j.db"
    copy = Running("-r", "8M", "--workers", 2, "--journal", journal, tmp_path / "a.raw", tmp_path / "b.raw")
    copy.until_it_moves()
    stop_all(copy, number)
    code, words = copy.end()
    assert code == 128 + number
    one_line(words, WORDS[number], f"resume with: mpconv resume {journal})")
    assert list(directory.iterdir()) == []
    again = Running(journal, command="resume")
    assert again.end(20) == (0, "")
    assert (tmp_path / "a.raw").read_bytes() == (tmp_path / "b.raw").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_fan_out_and_its_resume(directory: Path, tmp_path: Path, number: int):
    make_image(tmp_path / "a.raw", 32 * MiB)
    (tmp_path / "plan.toml").write_text(PLAN.format(tmp_path))
    written = 0
    for words in (("fanout", "--journal", tmp_path / "j", tmp_path / "plan.toml"), ("resume", tmp_path / "j")):
        copy = Running(*words[1:], command=words[0])
        deadline = time.monotonic() + 20
        while not (tmp_path / "b.raw").exists() or (tmp_path / "b.raw").stat().st_blocks * 512 <= written + MiB:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stop_all(copy, number)
        code, told = copy.end()
        written = (tmp_path / "b.raw").stat().st_blocks * 512
        assert code == 128 + number
        assert WORDS[number] in told and "resume" in told and "dmesg" not in told
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_host_s_workers_leave(tmp_path: Path, number: int):
    assert subprocess.run([sys.executable, "-m", "mpconv", "keygen", tmp_path / "keys"], check=False).returncode == 0
    copy = Running("--workers", 0, "--listen", "tcp://127.0.0.1:7651", "--key-file", tmp_path / "keys", *SLOW)
    words = ["worker", "--workers", "2", "--connect", "tcp://127.0.0.1:7651", "--key-file", str(tmp_path / "keys")]
    host = subprocess.Popen([sys.executable, "-m", "mpconv", *words], stderr=subprocess.PIPE, start_new_session=True)
    copy.until_it_moves()
    os.killpg(host.pid, number)
    assert host.communicate(timeout=20)[1] == b""
    assert host.returncode == 0
    stop_all(copy, signal.SIGTERM)
    assert copy.end()[0] == 128 + signal.SIGTERM


def test_who_was_started_to_outlive_its_terminal_does():
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words = [sys.executable, "-m", "mpconv", "convert", "-r", "16M", "null:?size=16M", "null:"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=nohup) as copy:
        while copy.poll() is None:
            os.killpg(copy.pid, signal.SIGHUP)
            time.sleep(0.05)
        assert copy.stderr is not None
        assert (copy.returncode, copy.stderr.read()) == (0, b"")


INTERRUPTS_AT = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == where:
            os.kill(os.getpid(), signal.SIGINT)
where, *sys.argv[1:] = sys.argv[1:]
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal starts it: a shell's "&" has it ignored
runpy.run_module("mpconv", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        ("mpconv.cli", -signal.SIGINT, b""),
        ("mpconv.cli.commands.checksum", 128 + signal.SIGINT, b"mpconv: interrupted\n"),
        ("mpconv.jobs.checksum", 128 + signal.SIGINT, b"mpconv: interrupted\n"),
    ],
)
def test_ctrl_c_while_modules_are_imported(module: str, code: int, told: bytes):
    words = [sys.executable, "-c", INTERRUPTS_AT, module, "checksum", "null:"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.lstrip(b"\n")) == (code, told)
