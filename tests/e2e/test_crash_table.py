"""The crash table of PROTOCOL.md: a copy killed at each of its points, and what the same run or the next one does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpconv.protocol import messages
from tests.conftest import mpconv
from tests.support.crash import IN_A_WORKER, POINTS

MIB = 1 << 20
TABLE = (Path(messages.__file__).parent / "PROTOCOL.md").read_text().partition("## The crash table\n")[2]
FORMS = {
    "raw": ("-W", "--workers", "2"),
    "qcow2": ("-O", "qcow2", "--workers", "2"),
    "compressed": ("-c", "-W", "-O", "qcow2", "--workers", "2"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that compresses, zeros, and data that does not."""
    path = tmp_path_factory.mktemp("crash") / "source.raw"
    with path.open("wb") as file:
        for number in range(24):
            file.write(bytes([number + 1]) * MIB if number % 3 else os.urandom(MIB))
            file.seek(MIB // 2, 1)
        file.truncate(40 * MIB)
    return path


def killed(point: str, who: str, mark: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Of a process group of its own; it got to the point."""
    command = [sys.executable, "-m", "tests.support.crash", point, who, str(mark), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, start_new_session=True)
    assert mark.exists(), f"it never got there: {done.stderr}"
    return done


def is_whole(source: Path, target: Path, form: str) -> bool:
    fmt = "raw" if form == "raw" else "qcow2"
    if fmt == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", target], check=True)
    compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", fmt, source, target]
    return subprocess.run(compare, check=False).returncode == 0


def test_the_table_has_a_row_for_each_point():
    rows = re.findall(r"^\| `([a-z ]+)` \|", TABLE, re.M)
    assert rows == list(POINTS)


@pytest.mark.parametrize("form", ["raw", "compressed"])
@pytest.mark.parametrize("point", IN_A_WORKER)
def test_the_same_run_goes_on_without_a_worker(point, form, source, tmp_path):
    target = tmp_path / "target"
    done = killed(point, "it", tmp_path / "mark", "convert", *FORMS[form], source, target)
    assert done.returncode == 0, done.stderr
    assert is_whole(source, target, form)


@pytest.mark.parametrize("form", ["raw", "compressed"])
def test_what_the_next_run_did_not_read_itself_is_in_the_digest_too(form, source, tmp_path):
    journal, target = tmp_path / "journal", tmp_path / "target"
    options = ("--digest", "--verify", "--journal", journal, *FORMS[form])
    killed("has everything", "all", tmp_path / "mark", "convert", *options, source, target)
    resumed = mpconv("resume", journal)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    digest = mpconv("checksum", "-f", "raw", source).stdout.split()[0]
    assert digest in resumed.stdout
    assert is_whole(source, target, form)


@pytest.mark.parametrize(
    ("point", "form"),
    [(point, "raw") for point in POINTS if point != "has written tables"] + [(point, "compressed") for point in POINTS],
)
def test_the_next_run_goes_on_where_all_were_killed(point, form, source, tmp_path):
    journal, target = tmp_path / "journal", tmp_path / "target"
    done = killed(point, "all", tmp_path / "mark", "convert", "--journal", journal, *FORMS[form], source, target)
    ended = point == "has said that" and done.returncode == 0  # the last flush of all: what is left takes less time
    assert ended or done.returncode == -signal.SIGKILL
    resumed = mpconv("resume", journal)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert is_whole(source, target, form)
