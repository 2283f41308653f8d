"""stdout and stderr that are closed, full, or pipes that end: no traceback, the right exit code, no error on stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_image

MiB = 1 << 20
NO_SPACE = b"mpconv: error while writing to standard output: No space left on device\n"
COMMANDS = {
    "compare a.raw same.raw": 0,
    "compare a.raw other.raw": 1,
    "compare -p a.raw same.raw": 0,
    "compare missing a.raw": 2,
    "convert -p a.raw b.raw": 0,
    "convert --progress=json a.raw b.raw": 0,
    "convert -p -O qcow2 --digest a.raw b.raw": 0,
    "convert missing b.raw": 1,
    "deploy -p a.raw b.raw c.raw": 0,
    "info --output json q.qcow2": 0,
    "map --output json q.qcow2": 0,
    "measure -O qcow2 a.raw": 0,
    "check q.qcow2": 0,
    "checksum a.raw": 0,
    "keygen keys": 0,
    "convert -O qcow2 -o help a.raw b.raw": 0,
    "convert --help": 0,
    "--version": 0,
    "bogus": 1,
}
"""Their exit codes with streams that work."""
PRINT = [words for words, code in COMMANDS.items() if code == 0 and words.split()[0] not in {"deploy", "keygen"}]
PRINT = [words for words in PRINT if not words.startswith(("convert -p a", "convert --progress"))]
"""What is not right without their output; progress alone is not."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_image(tmp_path / "a.raw", 2 * MiB)
    (tmp_path / "same.raw").write_bytes((tmp_path / "a.raw").read_bytes())
    (tmp_path / "other.raw").write_bytes(os.urandom(2 * MiB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", tmp_path / "a.raw", tmp_path / "q.qcow2"], check=True)
    return tmp_path


def run(directory: Path, words: str, how: str) -> tuple[int, bytes, bytes]:
    """By a shell; what of the streams is still there comes back."""
    command = f"exec {sys.executable} -m mpconv {words} {how}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, cwd=directory, timeout=60, check=False)
    if words.startswith("convert") and done.returncode == 0 and (directory / "b.raw").exists():
        kind = "qcow2" if "qcow2" in words else "raw"
        judge = ["qemu-img", "compare", "-f", "raw", "-F", kind, directory / "a.raw", directory / "b.raw"]
        assert subprocess.run(judge, capture_output=True, check=False).returncode == 0
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("how", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_or_deaf(directory: Path, words: str, how: str):
    code, out, err = run(directory, words, how)
    assert code == COMMANDS[words]
    assert b"Traceback" not in err and b"mpconv: " not in out


@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk(directory: Path, words: str):
    code, _, err = run(directory, words, ">/dev/full")
    if words in PRINT:
        assert (code, err) == (2 if words.startswith("compare") else 1, NO_SPACE)
    else:
        assert code == COMMANDS[words]
        assert err.count(b"\n") == (code > 0)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_who_has_left(directory: Path, words: str):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mpconv", *words.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=directory, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == COMMANDS[words]
    assert done.stderr.count(b"\n") == (words in {"compare missing a.raw", "convert missing b.raw", "bogus"})


def test_a_closed_descriptor_is_no_image_s(directory: Path):
    """What is told would be written into it."""
    run(directory, "convert -v a.raw b.raw", "<&- >&- 2>&-")
    run(directory, "convert -n a.raw b.raw missing.raw", "<&- >&- 2>&-")
    assert (directory / "a.raw").read_bytes() == (directory / "b.raw").read_bytes()
