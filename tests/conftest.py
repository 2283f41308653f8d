"""Real servers for the whole session, and fresh files and LUNs for each test."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import namespaces
from tests.support.servers import IscsiServer, NfsServer

IQN = "iqn.2026-11.org.mpconv:test"
MOST_PROCESSES = 4


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a process for each core, one alone where their servers would meet."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES) if namespaces.possible() else 1


def pytest_configure(config: pytest.Config) -> None:
    """Each process that runs tests gets namespaces of its own; the one that hands them out needs none.

    No example has a deadline: a busy machine is no defect.
    """
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if runs_tests and namespaces.possible():
        namespaces.enter()


@pytest.fixture(scope="session")
def nfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    with NfsServer(tmp_path_factory.mktemp("nfs"), unfriendly=True) as server:
        yield server


@pytest.fixture(scope="module")
def registered_nfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    """A server of one's own, for `qemu_url`: the portmapper names the one that was started last, alive or not."""
    with NfsServer(tmp_path_factory.mktemp("registered-nfs")) as server:
        yield server


@pytest.fixture(scope="session")
def iscsi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IscsiServer]:
    with IscsiServer(tmp_path_factory.mktemp("iscsi")) as server:
        server.add_target(IQN)
        yield server


@dataclass(frozen=True)
class Lun:
    url: str
    backing: Path


_numbers = itertools.count(1)


@pytest.fixture
def lun(iscsi: IscsiServer, tmp_path: Path) -> Callable[..., Lun]:
    def make(
        size: int, *, block_size: int = 512, old_data: bool = False, readonly: bool = False, thin: bool = True
    ) -> Lun:
        backing = tmp_path / f"lun{next(_numbers)}.img"
        with backing.open("wb") as file:
            file.truncate(size)
            if old_data:
                file.write(b"\xa5" * size)
        number = iscsi.add_lun(IQN, backing, block_size=block_size, readonly=readonly, thin=thin)
        return Lun(iscsi.url(IQN, number), backing)

    return make


def make_image(path: Path, size: int, seed: int = 1) -> None:
    """A sparse file of `size` bytes: data, holes and zero runs of awkward lengths."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        at = 0
        while at < size:
            length = chance.choice([511, 512, 4096, 5000, 70_000, 1 << 20, 3 << 20])
            what = chance.choice(["data", "zero", "hole", "data"])
            if what != "hole":
                file.seek(at)
                length = min(length, size - at)
                file.write(os.urandom(length) if what == "data" else bytes(length))
            at += length


def mpconv(
    *arguments: object, timeout: float = 60, env: dict[str, str] | None = None, cwd: object = None
) -> subprocess.CompletedProcess:
    """Run the command line."""
    command = [sys.executable, "-m", "mpconv", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def identical(first: object, second: object) -> bool:
    """qemu-img's judgement of two raw images."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(first), str(second)], capture_output=True, check=False
    )
    return done.returncode == 0
