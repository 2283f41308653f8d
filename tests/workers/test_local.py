"""Worker processes on this host: the nursery that forks them, how they end, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpconv.model.errors import WorkerLost
from mpconv.workers.launch.forkserver import _be, fork
from mpconv.workers.launch.local import LocalWorkers, WorkerShare
from mpconv.workers.process import HEARSAY

NOWHERE = "ipc:///nonexistent/link"
"""A worker says hello there for as long as it is let."""


@pytest.fixture
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers([]) as made:
        yield made


def children(pid: int) -> list[int]:
    """Zombies too."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for name in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            found[int(name.name)] = os.readlink(name)
    return found


def status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{key}:"))


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def gone(pid: int) -> bool:
    try:
        return status(pid, "State").startswith("Z")
    except OSError:
        return True


def serving(pid: int) -> bool:
    """It has come as far as its event loop."""
    return any("eventpoll" in name for name in descriptors(pid).values())


def test_many_starts_and_ends_leave_neither_zombies_nor_descriptors():
    before = descriptors(os.getpid())
    own = children(os.getpid())
    codes: list[int | None] = []
    with LocalWorkers([]) as workers:
        nursery = workers._nursery.pid

        async def some() -> None:
            pids = workers.start(3, NOWHERE, lambda _, code: codes.append(code))
            assert sorted(children(nursery)) == sorted(pids)
            os.kill(pids[0], signal.SIGKILL)
            await workers.stop(0)
            assert children(nursery) == []

        asyncio.run(some())
        first = descriptors(nursery)
        for _ in range(30):
            asyncio.run(some())
        assert descriptors(nursery) == first
    assert codes == [-signal.SIGKILL] * 93
    assert descriptors(os.getpid()) == before
    assert children(os.getpid()) == own


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("can't start new thread"), "no thread can be started"),
        (MemoryError(), "not enough memory"),
        (ValueError("a defect"), "Traceback"),
    ],
)
def test_what_a_process_has_run_out_of_is_one_line(capfd, error: Exception, words: str):
    def life() -> int:
        raise error

    pid = os.fork()
    if not pid:
        _be(life)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    told = capfd.readouterr().err
    assert words in told
    assert (len(told.splitlines()) == 1) is ("Traceback" not in told)


def test_what_ends_a_worker_is_told(workers):
    async def main() -> dict[int, int | None]:
        ended: dict[int, int | None] = {}
        pids = workers.start(3, NOWHERE, ended.__setitem__)
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGTERM)
        await until(lambda: len(ended) == 2)
        assert ended == {pids[0]: -signal.SIGKILL, pids[1]: -signal.SIGTERM}
        assert gone(pids[0]) and not gone(pids[2])
        await workers.stop(0)
        return ended

    assert len(asyncio.run(main())) == 3


def test_a_worker_that_hears_nothing_is_killed_after_the_grace(workers):
    async def main() -> None:
        [pid] = workers.start(1, NOWHERE, lambda *_: None)
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        await workers.stop(0.2)
        assert 0.2 <= time.monotonic() - started < 2
        assert gone(pid)

    asyncio.run(main())


def test_they_inherit_nothing_but_the_standard_streams():
    with open(os.devnull) as other, open("/etc/passwd") as special, LocalWorkers([]) as workers:
        os.set_inheritable(other.fileno(), True)

        async def main() -> None:
            [pid] = workers.start(1, NOWHERE, lambda *_: None)
            nursery = workers._nursery.pid
            await until(lambda: serving(pid))
            for process in (nursery, pid):
                found = descriptors(process)
                assert found[0] == os.devnull
                assert special.name not in found.values()
                assert list(found.values()).count(os.devnull) == 1 + sum(
                    name == os.devnull for number, name in descriptors(os.getpid()).items() if number in (1, 2)
                )
            assert len([number for number in descriptors(nursery) if number > 2]) == 4
            await workers.stop(0)

        asyncio.run(main())


def test_signals_for_the_command_are_ignored(workers):
    async def main() -> None:
        [pid] = workers.start(1, NOWHERE, lambda *_: None)
        await until(lambda: serving(pid))
        for process in (workers._nursery.pid, pid):
            ignored = int(status(process, "SigIgn"), 16)
            for number in (signal.SIGINT, signal.SIGUSR1):
                assert ignored >> number - 1 & 1
            await until(lambda process=process: int(status(process, "SigBlk"), 16) == 0)  # not while it starts threads
        assert not int(status(pid, "SigCgt"), 16) >> signal.SIGCHLD - 1 & 1
        await workers.stop(0)

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_all_get_is_the_command_s_business(workers, number):
    """A worker that gets it alone ends of it, and one that gets it with the nursery goes on; also before it serves."""

    async def main() -> None:
        ended: dict[int, int | None] = {}
        [lone] = workers.start(1, NOWHERE, ended.__setitem__)
        os.kill(lone, number)
        await until(lambda: ended == {lone: -number})
        pids = workers.start(2, NOWHERE, ended.__setitem__)
        for process in (workers._nursery.pid, *pids):
            os.kill(process, number)
        await until(lambda: all(serving(pid) for pid in pids))
        os.kill(pids[0], number)
        await asyncio.sleep(2 * HEARSAY)
        assert list(ended) == [lone]
        await workers.stop(0)

    asyncio.run(main())


def test_a_killed_nursery_is_told_and_its_workers_are_killed(workers):
    async def main() -> None:
        ended: dict[int, int | None] = {}
        pids = workers.start(2, NOWHERE, ended.__setitem__)
        await until(lambda: all(map(serving, pids)))
        os.kill(pids[0], signal.SIGSTOP)
        os.kill(workers._nursery.pid, signal.SIGKILL)
        await until(lambda: len(ended) == 2)
        assert ended == dict.fromkeys(pids, None)
        await until(lambda: all(map(gone, pids)))
        with pytest.raises(WorkerLost, match="could not be started: the process that starts them has ended"):
            workers.start(1, NOWHERE, ended.__setitem__)
        await workers.stop(0)

    asyncio.run(main())


def test_a_nursery_that_cannot_fork_says_why():
    script = """
import asyncio, os, resource
import mpconv.workers.process
from mpconv.workers.launch.local import LocalWorkers
from mpconv.workers.launch.forkserver import _be, fork
from mpconv.workers.process import HEARSAY
if not os.getuid():
    os.setuid(65534)
with LocalWorkers([]) as workers:
    resource.prlimit(workers._nursery.pid, resource.RLIMIT_NPROC, (0, 0))
    async def main():
        workers.start(1, "ipc:///nonexistent/link", print)
    try:
        asyncio.run(main())
    except Exception as error:
        print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    LocalWorkers([])
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    why = os.strerror(11)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"WorkerLost a worker process could not be started: {why}: try fewer --workers",
        f"WorkerLost no worker process can be started: {why}: is memory short, or ulimit -u?",
    ]


def test_a_command_that_ends_before_it_read_a_report_ends_the_nursery_quietly(capfd):
    nursery = fork([])
    nursery.control.send(NOWHERE.encode())
    assert select.select([nursery.control], [], [], 30)[0], "a worker was started"
    nursery.control.close()
    os.close(nursery.lifeline)
    assert os.waitpid(nursery.pid, 0)[1] == 0
    assert capfd.readouterr().err == ""


SPY = """
import os, sys
fork = os.fork
def counted():
    names = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")[:-1]]
    print(len(os.listdir("/proc/self/task")), sum("eventpoll" in name for name in names), file=sys.stderr)
    return fork()
os.fork = counted
from mpconv.cli import run
run()
"""


@pytest.mark.parametrize(
    ("options", "target", "forks"),
    [
        ((), "b.raw", 2),
        (("-W", "--workers", "2"), "b.raw", 3),
        (("-O", "qcow2", "-c", "--workers", "2"), "b.qcow2", 3),
        ((), "nfs://127.0.0.1:1/x", 1),
        ((), "iscsi://127.0.0.1:1/iqn.x/1", 1),
    ],
)
def test_what_is_forked_has_one_thread_and_no_event_loop(tmp_path, options, target, forks):
    (tmp_path / "a.raw").write_bytes(os.urandom(1 << 20))
    words = [sys.executable, "-W", "error", "-c", SPY, "convert", "-f", "raw", *options, "a.raw", target]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    lines = done.stderr.splitlines()
    assert lines[:forks] == ["1 0"] * forks
    assert len(lines) == forks + (forks == 1), lines
    assert done.returncode == (forks == 1)


def test_a_command_that_fails_early_has_no_process_left_when_it_ends(tmp_path):
    words = [sys.executable, "-m", "mpconv", "convert", str(tmp_path / "none"), "null:"]
    command = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    assert command.wait(60) == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(command.pid, 0)


def test_one_job_ends_its_own_workers_alone(workers):
    async def main() -> None:
        ended: list[int] = []
        first, second = WorkerShare(workers), WorkerShare(workers)
        mine = first.start(2, NOWHERE, lambda pid, _: ended.append(pid))
        [theirs] = second.start(1, NOWHERE, lambda pid, _: ended.append(pid))
        second.kill(mine[0])  # none of its own
        await first.stop(0)
        assert sorted(ended) == sorted(mine) and all(gone(pid) for pid in mine)
        assert len(first) == 0 and len(second) == 1 and not gone(theirs)
        mine = first.start(1, NOWHERE, lambda pid, _: ended.append(pid))
        await second.stop(0)
        assert gone(theirs) and not gone(mine[0])
        await workers.stop(0)
        assert gone(mine[0]) and len(first) == 0

    asyncio.run(main())
