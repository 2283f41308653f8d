"""NFS servers that are started again behind a living connection: what they lose is written again, or the copy fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import identical, mpconv
from tests.support.nfs_proxy import Verifier, nfs_proxy
from tests.support.servers import NfsServer

MiB = 1 << 20
SIZE = 24 * MiB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


def losing(path: Path, verifier: Verifier) -> Callable[[], None]:
    """What was written, and not made durable, is zeros again."""

    def lose() -> None:
        with path.open("r+b") as file:
            for lost in verifier.owed:
                os.pwrite(file.fileno(), bytes(lost.count), lost.offset)

    return lose


CHANGES = {
    "early": {"at": 1},
    "in the middle": {"at": 9},
    "twice": {"at": 7, "changes": 2},
    "at the end": {"at": 24},
    "at the first COMMIT": {"name": "COMMIT", "at": 1},
    "at the second COMMIT": {"name": "COMMIT", "at": 2},
    "at each of five COMMITs": {"name": "COMMIT", "at": 1, "changes": 5},
}


OPTIONS = [("-W",), (), ("--workers", "1"), ("-t", "writethrough")]
PAIRS = [(change, OPTIONS[(number + more) % 4]) for number, change in enumerate(CHANGES) for more in (0, 1)]


@pytest.mark.parametrize(("change", "options"), PAIRS)
def test_what_was_lost_is_written_again(
    nfs: NfsServer, source: Path, change: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    path = nfs.path(f"{tmp_path.name}.raw")
    verifier = Verifier(**CHANGES[change])
    verifier.lose = losing(path, verifier)
    with nfs_proxy(nfs.port, reply=verifier) as proxy:
        done = mpconv("convert", *options, "-f", "raw", "-O", "raw", source, proxy.url(nfs.url(path.name)))
    assert verifier.epoch
    assert done.returncode == 0, done.stderr
    assert identical(source, path)


@pytest.mark.parametrize("name", ["WRITE", "COMMIT"])
@pytest.mark.parametrize("options", [("-W",), (), ("-t", "writethrough")], ids=" ".join)
def test_a_server_that_never_keeps_anything(
    nfs: NfsServer, source: Path, name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    path = nfs.path(f"{tmp_path.name}.raw")
    verifier = Verifier(name=name, at=1, changes=1 << 40)
    with nfs_proxy(nfs.port, reply=verifier) as proxy:
        url = proxy.url(nfs.url(path.name))
        done = mpconv("convert", *options, "--retry-for", 2, "-f", "raw", "-O", "raw", source, url)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "the server was started again before it had made it durable" in last and "given up after" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "changes", [{"name": "COMMIT", "at": n} for n in range(1, 6)] + [{"at": 5}, {"at": 24}], ids=str
)
@pytest.mark.parametrize("options", [(), ("-W", "-c")], ids=" ".join)
def test_the_tables_of_an_image_too(
    nfs: NfsServer, source: Path, changes: dict[str, int], options: tuple[str, ...], tmp_path: Path
) -> None:
    """The coordinator writes them, by connections of its own, with a COMMIT between each step and the next."""
    path = nfs.path(f"{tmp_path.name}.qcow2")
    verifier = Verifier(**{"changes": 2, **changes})
    verifier.lose = losing(path, verifier)
    with nfs_proxy(nfs.port, reply=verifier) as proxy:
        done = mpconv("convert", *options, "-f", "raw", "-O", "qcow2", source, proxy.url(nfs.url(path.name)))
    assert verifier.epoch
    assert done.returncode == 0, done.stderr
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, path], check=True, capture_output=True)
    subprocess.run(["qemu-img", "check", "-f", "qcow2", path], check=True, capture_output=True)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("at", [3, 12, 20])
def test_a_journal_counts_nothing_that_was_lost(
    nfs: NfsServer, source: Path, fmt: str, at: int, tmp_path: Path
) -> None:
    path, journal = nfs.path(f"{tmp_path.name}.{fmt}"), tmp_path / "j.db"
    verifier = Verifier(at=at)
    verifier.lose = losing(path, verifier)
    with nfs_proxy(nfs.port, reply=verifier) as proxy:
        url = proxy.url(nfs.url(path.name))
        options = ["-W", "-r", "24M", "--retry-for", 0, "--journal", journal, "-f", "raw", "-O", fmt]
        done = mpconv("convert", *options, source, url)
        assert verifier.epoch
        if done.returncode:  # nothing is tried again, unless nothing was owed just then
            done = mpconv("resume", "-r", 0, journal)
    assert done.returncode == 0, done.stderr
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", fmt, source, path], check=True, capture_output=True)


@pytest.mark.parametrize("changes", [{"at": 9}, {"name": "COMMIT", "at": 1, "changes": 2}], ids=str)
def test_one_of_several_targets(nfs: NfsServer, source: Path, changes: dict[str, int], tmp_path: Path) -> None:
    path, other = nfs.path(f"{tmp_path.name}.raw"), tmp_path / "other.raw"
    verifier = Verifier(**changes)
    verifier.lose = losing(path, verifier)
    with nfs_proxy(nfs.port, reply=verifier) as proxy:
        done = mpconv("deploy", "-f", "raw", source, proxy.url(nfs.url(path.name)), other)
    assert verifier.epoch
    assert done.returncode == 0, done.stderr
    assert identical(source, path) and identical(source, other)


def test_holes_are_lost_too(nfs: NfsServer, tmp_path: Path) -> None:
    """Nothing but zeros: no WRITE tells a verifier, and they are made over another connection."""
    source, path = tmp_path / "zeros.raw", nfs.path(f"{tmp_path.name}.raw")
    source.touch()
    os.truncate(source, SIZE)
    path.write_bytes(b"x" * SIZE)
    verifier = Verifier(name="COMMIT", at=1)

    def lose() -> None:
        with path.open("r+b") as file:
            file.write(b"x" * SIZE)

    verifier.lose = lose
    with nfs_proxy(nfs.port, reply=verifier) as proxy:
        url = proxy.url(nfs.url(path.name))
        done = mpconv("convert", "-n", "-W", "--workers", 1, "-f", "raw", "-O", "raw", source, url)
    assert verifier.epoch and proxy.calls["WRITE"] < 10
    assert done.returncode == 0, done.stderr
    assert identical(source, path)
