"""NFS servers that put requests off (NFS3ERR_JUKEBOX): they are asked again, for as long as there is patience."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.conftest import identical, mpconv
from tests.support.nfs_proxy import JUKEBOX, Answer, Jukebox, nfs_proxy
from tests.support.servers import NfsServer

MiB = 1 << 20
CALLS = ["CREATE", "LOOKUP", "GETATTR", "ACCESS", "FSINFO", "SETATTR", "WRITE", "COMMIT"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(os.urandom(4 * MiB))
    return path


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_target(nfs: NfsServer, source: Path, tmp_path: Path, name: str, times: int, fmt: str) -> None:
    path = nfs.path(f"{tmp_path.name}.{fmt}")
    jukebox = Jukebox(name, times=times)
    with nfs_proxy(nfs.port, jukebox) as proxy:
        done = mpconv("convert", "-f", "raw", "-O", fmt, source, proxy.url(nfs.url(path.name)))
        back = mpconv("compare", "-f", "raw", "-F", fmt, source, nfs.url(path.name))
    assert done.returncode == 0, done.stderr
    assert not jukebox.left[name] and back.returncode == 0


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("name", ["LOOKUP", "GETATTR", "ACCESS", "FSINFO", "READ"])
def test_a_source(nfs: NfsServer, source: Path, tmp_path: Path, name: str, times: int) -> None:
    path, target = nfs.path(f"{tmp_path.name}.raw"), tmp_path / "target.raw"
    path.write_bytes(source.read_bytes())
    jukebox = Jukebox(name, times=times)
    with nfs_proxy(nfs.port, jukebox) as proxy:
        done = mpconv("convert", "-f", "raw", "-O", "raw", proxy.url(nfs.url(path.name)), target)
    assert done.returncode == 0, done.stderr
    assert not jukebox.left[name] and identical(path, target)


@pytest.mark.parametrize("name", ["CREATE", "LOOKUP", "SETATTR"])
def test_for_three_seconds(nfs: NfsServer, source: Path, tmp_path: Path, name: str) -> None:
    """Longer than anybody waits who was not told that servers may be away."""
    began: list[float] = []

    def call(called: str, body: bytes, number: int) -> Answer:
        if called != name:
            return None
        began.append(time.monotonic())
        return JUKEBOX if began[-1] - began[0] < 3 else None

    path = nfs.path(f"{tmp_path.name}.raw")
    with nfs_proxy(nfs.port, call) as proxy:
        done = mpconv("convert", "-f", "raw", "-O", "raw", source, proxy.url(nfs.url(path.name)))
    assert done.returncode == 0, done.stderr
    assert identical(source, path)


@pytest.mark.parametrize("name", CALLS)
def test_for_ever(nfs: NfsServer, source: Path, tmp_path: Path, name: str) -> None:
    jukebox = Jukebox(name, times=1 << 40)
    with nfs_proxy(nfs.port, jukebox) as proxy:
        url = proxy.url(nfs.url(f"{tmp_path.name}.raw"))
        done = mpconv("convert", "--retry-for", 2, "-f", "raw", "-O", "raw", source, url)
    assert done.returncode == 1
    assert "the server asks to try again later" in done.stderr.splitlines()[-1]
