"""What killed runs of earlier versions have left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mpconv.cli import leftovers
from tests.conftest import mpconv


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "t"
    made.mkdir()
    return made


def left(directory: Path, name: str, mode: int = 0o700, age: float = 3600) -> tuple[Path, socket.socket]:
    """A run's directory, as old as that, and what listens in it."""
    path = directory / name
    path.mkdir(mode)
    path.chmod(mode)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path / "link"))
    listening.listen()
    when = path.stat().st_mtime - age
    os.utime(path, (when, when))
    return path, listening


def test_directories_of_the_dead_go_and_no_others(directory: Path):
    for name, mode, age in (
        ("mpconv-aaaaaaaa", 0o700, 3600.0),
        ("mpconv-young___", 0o700, 0.0),
        ("mpconv-open____", 0o755, 3600.0),
        ("mpconv-tests", 0o700, 3600.0),
    ):
        left(directory, name, mode, age)[1].close()
    _, alive = left(directory, "mpconv-alive___")
    theirs, ended = left(directory, "mpconv-theirs__")
    ended.close()
    os.chown(theirs, 65534, 65534)
    file = directory / "mpconv-has_file"
    file.mkdir(0o700)
    (file / "precious").touch()
    os.utime(file, (0, 0))
    elsewhere, ended = left(directory, "elsewhere")
    ended.close()
    (directory / "mpconv-linked__").symlink_to(elsewhere)
    empty = directory / "mpconv-empty___"
    empty.mkdir(0o700)
    os.utime(empty, (0, 0))
    before = set(os.listdir(directory))
    assert mpconv("convert", "null:?size=1M", "null:", env={"TMPDIR": str(directory)}).returncode == 0
    assert before - set(os.listdir(directory)) == {"mpconv-aaaaaaaa", "mpconv-empty___"}
    assert os.listdir(elsewhere) == ["link"]
    alive.close()


@pytest.mark.parametrize("kind", ["missing", "unwritable", "long"])
def test_a_copy_needs_no_temporary_files(tmp_path: Path, directory: Path, kind: str):
    where = {"missing": directory / "none", "unwritable": Path("/proc"), "long": directory / ("x" * 120)}[kind]
    if kind == "long":
        where.mkdir()
    (tmp_path / "a.raw").write_bytes(os.urandom(1 << 20))
    done = mpconv("convert", tmp_path / "a.raw", tmp_path / "b.raw", env={"TMPDIR": str(where)})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.raw").read_bytes() == (tmp_path / "b.raw").read_bytes()
    if kind == "long":
        assert os.listdir(where) == []


def test_no_directory_for_them_at_all(monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(leftovers.tempfile, "gettempdir", none)
    leftovers.remove()
