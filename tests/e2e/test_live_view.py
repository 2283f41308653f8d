"""What people see of a job on their terminal, and programs in its lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Lun, identical, mpconv
from tests.support.relay import Relay, relay
from tests.support.terminal import OnTerminal

MiB = 1 << 20
SIZE = 64 * MiB
RATE = r"\d[\d.]* [KMG]iB/s on average"


def half_empty(path: Path) -> None:
    """The first half is data, the rest a hole."""
    with path.open("wb") as file:
        file.write(os.urandom(SIZE // 2))
        file.truncate(SIZE)


@pytest.fixture
def lost(lun: Callable[..., Lun]) -> Iterator[tuple[str, Path, Relay]]:
    """A LUN, what is stored of it, and the relay through which it is reached, slow enough to be cut on the way."""
    made = lun(SIZE)
    half_empty(made.backing)
    [(host, port)] = re.findall(r"//([^:/]+):(\d+)/", made.url)
    with relay(host, int(port)) as link:
        link.slow(rate=16 * MiB)
        yield made.url.replace(f":{port}/", f":{link.port}/"), made.backing, link


def test_who_waits_for_a_server_is_seen_until_it_answers(tmp_path: Path, lost):
    url, backing, link = lost
    copy = OnTerminal(tmp_path, "convert", "-p", "-W", "--workers", "2", url, "b.raw")
    link.wait_for("bytes", 4 * MiB)
    link.refuse()
    copy.until(r"retrying for 0:01( \(2 workers\))?: 'iscsi://\S+' does not answer")
    link.slow()
    link.accept()
    code, lines = copy.end()
    assert code == 0 and identical(backing, tmp_path / "b.raw")
    assert re.fullmatch(rf"copied 64 MiB in \d+\.\d s: 32 MiB written, 32 MiB zeros, {RATE}", lines[-1]), lines
    assert not [line for line in lines if "retrying" in line]


def test_programs_are_told_that_workers_wait_and_that_they_go_on(tmp_path: Path, lost):
    url, backing, link = lost
    words = [sys.executable, "-m", "mpconv", "compare", "--progress=json", "--workers", "1", str(backing), url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link.wait_for("bytes", 4 * MiB)
        link.refuse()
        found = []
        for line in process.stdout:
            if not line.startswith("{"):
                assert line == "Images are identical.\n"
                continue
            found.append(json.loads(line))
            if found[-1]["retrying"]:
                link.slow()
                link.accept()
    assert process.returncode == 0
    assert {one["retrying"] for one in found} == {0, 1}
    assert found[0]["retrying"] == found[-1]["retrying"] == 0 and found[-1]["phase"] == "done"
    assert {one["total"] for one in found[1:]} == {SIZE}, "the size of the disk, holes and all"


@pytest.mark.parametrize(
    ("words", "summary"),
    [
        (["convert", "-p", "a.raw", "new.raw"], "copied 64 MiB in TIME: 32 MiB written, 32 MiB zeros, RATE"),
        (
            ["convert", "-p", "--verify", "a.raw", "new.raw"],
            "copied 64 MiB in TIME: 32 MiB written, 32 MiB zeros, RATE, 64 MiB verified",
        ),
        (["deploy", "-p", "a.raw", "new.raw"], "copied 64 MiB in TIME: 32 MiB written, 32 MiB zeros, RATE"),
        (["compare", "-p", "a.raw", "b.raw"], "compared 64 MiB in TIME: 32 MiB read, 32 MiB zeros, RATE"),
        (["checksum", "-p", "a.raw"], "read 64 MiB in TIME: 32 MiB read, 32 MiB zeros, RATE"),
    ],
    ids=["convert", "verify", "deploy", "compare", "checksum"],
)
def test_what_it_came_to_takes_the_place_of_the_bar(tmp_path: Path, words: list[str], summary: str):
    half_empty(tmp_path / "a.raw")
    subprocess.run(["cp", "--sparse=always", "a.raw", "b.raw"], cwd=tmp_path, check=True)
    run = OnTerminal(tmp_path, *words)
    code, lines = run.end()
    expected = re.escape(summary).replace("TIME", r"\d+\.\d s").replace("RATE", RATE)
    assert code == 0 and re.fullmatch(expected, lines[0]), lines
    assert "━" not in "".join(lines)
    assert len(lines) == 1 + (words[0] in {"compare", "checksum"})


def test_of_images_that_differ_it_tells_how_much_was_compared(tmp_path: Path):
    half_empty(tmp_path / "a.raw")
    half_empty(tmp_path / "b.raw")
    code, lines = OnTerminal(tmp_path, "compare", "-p", "--workers", "1", "-m", "1", "a.raw", "b.raw").end()
    assert code == 1 and re.match(r"compared \d+ MiB of 64 MiB in ", lines[0]), lines
    assert lines[1] == "Content mismatch at offset 0!"


def test_a_resumed_copy_tells_what_was_there_before(tmp_path: Path):
    half_empty(tmp_path / "a.raw")
    copy = OnTerminal(tmp_path, "convert", "-p", "-r", "8M", "--journal", "j", "a.raw", "b.raw")
    copy.until(r"of 32 MiB .*\d left")
    copy.until(r" (1[0-9]|2[0-9]) MiB of 32 MiB")
    copy.process.terminate()
    assert copy.end()[0] == 143
    code, lines = OnTerminal(tmp_path, "resume", "-p", "j").end()
    assert code == 0 and re.match(r"copied 64 MiB in \S+ s: .* MiB written, .* MiB done before, ", lines[-1]), lines
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_the_summary_is_for_people_who_want_it(tmp_path: Path):
    half_empty(tmp_path / "a.raw")
    told = rf"mpconv: copied 64 MiB in \S+ s: 32 MiB written, 32 MiB zeros, {RATE}"
    loud = mpconv("convert", "-v", "a.raw", "b.raw", cwd=tmp_path)
    assert re.fullmatch(told, loud.stderr.splitlines()[-1]) and loud.stdout == ""
    for words in ([], ["-p"], ["-q"], ["-q", "-v"], ["--progress=json"]):
        done = mpconv("convert", *words, "a.raw", "b.raw", cwd=tmp_path)
        assert done.returncode == 0 and "copied" not in done.stdout + done.stderr, words
