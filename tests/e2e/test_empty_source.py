"""A source without a byte is copied, as qemu-img does, but not without a word; where images are kept it is an error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import mpconv

WORDS = "the source 'a.raw' is empty (0 bytes): see whether what wrote it has failed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.raw").touch()
    (tmp_path / "full.raw").write_bytes(b"\xa5" * 4096)
    return tmp_path


@pytest.mark.parametrize("words", [("a.raw",), ("full.raw", "a.raw")])
def test_a_copy_warns(folder: Path, words: tuple[str, ...]):
    done = mpconv("convert", "-f", "raw", *words, "b.raw", cwd=folder)
    assert (done.returncode, done.stderr) == (0, f"mpconv: warning: {WORDS}\n")
    assert (folder / "b.raw").stat().st_size == 4096 * (len(words) - 1)


def test_a_disk_of_no_bytes(folder: Path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "e.qcow2", "0"], check=True, cwd=folder)
    done = mpconv("convert", "e.qcow2", "b.raw", cwd=folder)
    assert done.returncode == 0
    assert "the source 'e.qcow2' is empty (a disk of 0 bytes)" in done.stderr


@pytest.mark.parametrize("words", [("convert", "--verify"), ("deploy",), ("convert", "--verify", "full.raw")])
def test_where_it_is_an_error(folder: Path, words: tuple[str, ...]):
    done = mpconv(*words, "-f", "raw", "a.raw", "b.raw", cwd=folder)
    assert (done.returncode, done.stderr) == (1, f"mpconv: {WORDS}\n")
    assert not (folder / "b.raw").exists()


def test_a_fan_out_does_not_try_it_again(folder: Path):
    plan = '[defaults]\nretries = 3\n[[job]]\nname = "one"\nsource = "a.raw"\nsource_format = "raw"\ntarget = "b.raw"\n'
    (folder / "plan.toml").write_text(plan)
    done = mpconv("fanout", "--json", "plan.toml", cwd=folder)
    assert done.returncode == 1
    assert WORDS in done.stdout and '"attempts": 1' in done.stdout
    assert not (folder / "b.raw").exists()


def test_what_swallows_everything_has_no_bytes_and_nothing_is_said(folder: Path):
    done = mpconv("convert", "null:", "b.raw", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
