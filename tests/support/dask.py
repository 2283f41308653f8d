"""Dask schedulers and workers as processes of their own, as `dask scheduler` and `dask worker` start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.hosts import Host
from tests.support.servers import LOOPBACK, free_port

_SECONDS = 30.0
_LOCAL = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


def until(holds: Callable[[], object], seconds: float = _SECONDS) -> None:
    """Wait for something to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


class LocalDask:
    """A program with a LocalCluster, which runs until it is closed."""

    def __init__(self, directory: Path) -> None:
        program = directory / "local_cluster.py"
        program.write_text(_LOCAL)
        pipe = subprocess.PIPE
        with (directory / "local_cluster.log").open("wb") as log:
            self.process = subprocess.Popen([sys.executable, program], stdin=pipe, stdout=pipe, stderr=log, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate(timeout=_SECONDS)


class Dask:
    """A scheduler at `host`, and Dask workers, each under a nanny. `tls`: where make_certificate made what it needs."""

    def __init__(self, directory: Path, host: str = LOOPBACK, *, tls: Path | None = None) -> None:
        self._directory = directory
        self.address = f"{'tls' if tls else 'tcp'}://{host}:{free_port()}"
        self.env = dict(os.environ)
        if tls is not None:
            told = {"CA_FILE": "cert"}
            for role in ("SCHEDULER", "WORKER", "CLIENT"):
                told |= {f"{role}__CERT": "cert", f"{role}__KEY": "key"}
            for name, file in told.items():
                self.env[f"DASK_DISTRIBUTED__COMM__TLS__{name}"] = str(tls / file)
        self.log = directory / "dask.log"
        self.log.touch()
        self.started: list[subprocess.Popen[bytes]] = []
        _, _, port = self.address.rpartition(":")
        self.scheduler = self._start("dask_scheduler", f"--host={self.address[: -1 - len(port)]}", f"--port={port}")
        until(lambda: "Scheduler at" in self.log.read_text())

    def _start(
        self, module: str, *options: str, at: Host | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        words = [] if at is None else ["ip", "netns", "exec", at.name]
        words += [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *options]
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                words, stdout=log, stderr=log, env={**self.env, **(env or {})}, start_new_session=True
            )
        self.started.append(started)
        return started

    def worker(
        self,
        name: str,
        *options: str,
        at: Host | None = None,
        address: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """Start one, and wait until the scheduler knows it. `address`: the scheduler's, by another name."""
        words = ["--name", name, "--nthreads=1", "--memory-limit=0", f"--local-directory={self._directory}"]
        self._start("dask_worker", address or self.address, *words, *options, at=at, env=env)
        until(lambda: f"name: {name}" in self.log.read_text())

    def close(self) -> None:
        for process in self.started:
            for pid in [process.pid, *descendants(process.pid)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()


def make_certificate(directory: Path) -> Path:
    """`cert`, signed by itself, and its `key`, for both sides of every connection."""
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -keyout key -out cert"
    subprocess.run(words.split(), cwd=directory, check=True, capture_output=True)
    return directory


def descendants(pid: int) -> list[int]:
    """The processes that it started, and those that they did."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def children(pid: int) -> list[int]:
    """The processes that it started, by any of its threads."""
    found: list[int] = []
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, threads.read_text().split())
        except OSError:  # it has just ended
            continue
    return found


def command_of(pid: int) -> list[str]:
    """The words it was started with; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def copying(pid: int) -> list[int]:
    """The `mpconv worker` commands below it, without the processes that these forked."""
    found: list[int] = []
    for child in children(pid):
        found += [child] if "--connect" in command_of(child) else copying(child)
    return found


def alive(pid: int) -> bool:
    """Whether it runs: one that ended and is not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
