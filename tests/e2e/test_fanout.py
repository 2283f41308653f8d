"""Many copies by one plan: LUNs of a real target to files on a real NFS server, by workers of several hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import make_image, mpconv
from tests.support import namespaces
from tests.support.hosts import CONTROL, STORAGE, Host, add_addresses, host
from tests.support.servers import IscsiServer, NfsServer, free_port

MiB = 1 << 20
IQN = "iqn.2026-11.org.mpconv:fanout"
KINDS = (
    'target_format = "raw"',
    'target_format = "qcow2"\noob_writes = true',
    'target_format = "qcow2"\ncompress = true\noptions = { compression_type = "zstd" }',
    'target_format = "raw"\noob_writes = true\nverify = true',
)
pytestmark = pytest.mark.skipif(not namespaces.possible(), reason="needs network namespaces")


@pytest.fixture(scope="module")
def nfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    add_addresses()
    with NfsServer(tmp_path_factory.mktemp("fanout-nfs"), address=STORAGE) as server:
        yield server


@pytest.fixture(scope="module")
def iscsi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IscsiServer]:
    add_addresses()
    with IscsiServer(tmp_path_factory.mktemp("fanout-iscsi"), address=STORAGE) as server:
        server.add_target(IQN)
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fanout-keys") / "key"
    assert mpconv("keygen", path).returncode == 0
    return path


class Plan:
    """Backups of as many LUNs, in all kinds of formats, under a directory of the NFS server."""

    def __init__(self, nfs: NfsServer, iscsi: IscsiServer, directory: Path, stack: ExitStack) -> None:
        self.nfs, self.iscsi = nfs, iscsi
        self.directory = directory
        self.place = nfs.path(directory.name)
        self.place.mkdir()
        self.path = directory / "plan.toml"
        self.journal = directory / "journal"
        self.luns: dict[str, Path] = {}
        self.parts: list[str] = []
        self._stack = stack

    def head(self, limits: str = "", defaults: str = "") -> None:
        target = self.nfs.url(f"{self.directory.name}/{{name}}-{{date}}.img")
        self.parts.insert(0, f'[limits]\n{limits}\n[defaults]\ntarget = "{target}"\nretry_delay = 1\n{defaults}\n')

    def add(self, name: str, size: int, words: str = "") -> None:
        backing = self.directory / f"{name}.lun"
        make_image(backing, size, seed=len(self.luns))
        self.luns[name] = backing
        url = self.iscsi.url(IQN, self.iscsi.add_lun(IQN, backing))
        self.parts.append(f'[[job]]\nname = "{name}"\nsource = "{url}"\n{words}\n')

    def write(self) -> Path:
        self.path.write_text("\n".join(self.parts))
        return self.path

    def start(self, *options: object, command: str = "fanout", of: Path | None = None) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "mpconv", command, *map(str, options), str(of or self.write())]
        pipe = subprocess.PIPE
        made = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        self._stack.callback(made.kill)
        return made

    def image(self, name: str) -> Path:
        return self.place / f"{name}-{time.strftime('%Y-%m-%d')}.img"

    def copied(self) -> int:
        """Bytes that lie in all the targets."""
        return sum(path.stat().st_blocks * 512 for path in self.place.iterdir())

    def check(self, *but: str) -> None:
        """qemu-img finds every image right."""
        for name, backing in self.luns.items():
            if name not in but:
                kind = "qcow2" if self.image(name).read_bytes()[:4] == b"QFI\xfb" else "raw"
                compare = ["qemu-img", "compare", "-f", "raw", "-F", kind, backing, self.image(name)]
                judged = subprocess.run(compare, capture_output=True, text=True, check=False)
                assert judged.returncode == 0, (name, judged.stdout)
                if kind == "qcow2":
                    subprocess.run(["qemu-img", "check", "-q", self.image(name)], check=True)


@pytest.fixture
def plan(nfs: NfsServer, iscsi: IscsiServer, tmp_path: Path) -> Iterator[Plan]:
    with ExitStack() as stack:
        yield Plan(nfs, iscsi, tmp_path, stack)


@pytest.fixture
def hosts() -> Iterator[Callable[[], Host]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(host())


def until(holds: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[dict, list[str]]:
    """What it says at its end on stdout, and its lines on stderr."""
    out, words = process.communicate(timeout=80)
    assert process.returncode == code, words
    return json.loads(out), words.splitlines()


def result_of(found: dict, name: str) -> dict:
    [job] = [job for job in found["jobs"] if job["job"] == name]
    return job


def test_twenty_backups_outlive_a_host_and_a_server(plan, hosts, keys, tmp_path):
    """A worker host is killed in the middle, and then the target with all LUNs is killed and started again."""
    for number in range(20):
        plan.add(f"vm{number:02}", (4 + number % 5) * MiB + 512 * number, KINDS[number % len(KINDS)])
    plan.head('jobs = 5\nworkers = 5\nrate = "24M"', "retries = 5")
    stays, dies = hosts(), hosts()
    endpoint = f"tcp://{CONTROL}:{free_port()}"
    worker = [
        sys.executable,
        "-m",
        "mpconv",
        "worker",
        "--connect",
        endpoint,
        "--key-file",
        str(keys),
        "--workers",
        "3",
    ]
    helps = stays.run(*worker, log=tmp_path / "stays.log")
    killed = dies.run(*worker, log=tmp_path / "dies.log")
    fanout = plan.start("--listen", endpoint, "--key-file", keys, "--fence", "0.5", "--json", "-v")
    until(lambda: plan.copied() > 12 * MiB and len(dies.processes("copy-worker")) == 3)
    os.killpg(killed.pid, signal.SIGKILL)
    until(lambda: plan.copied() > 30 * MiB)
    plan.iscsi.restart()
    found, words = ended(fanout)
    assert helps.wait(20) == 0, (tmp_path / "stays.log").read_text()
    assert found["written"] == len(found["jobs"]) == 20
    plan.check()
    assert any("was silent for 1.5 seconds" in line for line in words), words
    assert any("trying again" in line or "begins again" in line for line in words), words
