"""What breaks while a copy runs: one clear line, exit 1, in seconds, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import identical, make_image, mpconv
from tests.support.servers import IscsiServer, NfsServer

MiB = 1 << 20
GiB = 1 << 30
IQN = "iqn.2026-11.org.mpconv:faults"
ENDLESS = ("null:?size=16T", "null:")
LONG = ("null:?size=2T", "null:")
SECONDS = 2.0


class Running:
    """A copy in a session of its own, watched until it has moved some bytes."""

    def __init__(self, *arguments: object, command: str = "convert") -> None:
        words = [sys.executable, "-m", "mpconv", command, "--progress=json", *map(str, arguments)]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        self.shown = b""

    def until_it_moves(self) -> None:
        """A figure above zero is shown."""
        assert self.process.stdout is not None
        while not re.search(rb'"done": [1-9]', self.shown):
            read = self.process.stdout.read(4096)
            assert read, "it ended before it moved a byte"
            self.shown += read

    def members(self) -> dict[int, str]:
        """pid -> command line of every process of its session."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def workers(self) -> list[int]:
        """Processes whose parent is the one that forks them; none once all is over."""
        parents = {pid: _parent(pid) for pid in self.members()}
        nurseries = [pid for pid, parent in parents.items() if parent == self.process.pid]
        return sorted(pid for pid, parent in parents.items() if parent in nurseries)

    def end(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Exit code and stderr; it must end in `seconds` and leave no process."""
        started = time.monotonic()
        try:
            shown, words = self.process.communicate(timeout=60)
            self.shown += shown
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        took = time.monotonic() - started
        left = self._left()
        assert took < seconds, f"it took {took:.1f} seconds to end"
        assert not left
        return self.process.returncode, words.decode()

    def _left(self) -> dict[int, str]:
        deadline = time.monotonic() + SECONDS
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


def _parent(pid: int) -> int:
    """0 once it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def one_line(words: str, *parts: str) -> None:
    assert words.count("\n") == 1 and words.startswith("mpconv: "), words
    for part in parts:
        assert part in words, words


def warned(words: str, pids: list[int], number: int = signal.SIGKILL) -> None:
    """A warning for each of them and no other word."""
    end = f"ended (signal {int(number)}): its work is done again by others\n"
    lines = [f"mpconv: warning: a worker process (pid {pid}) {end}" for pid in pids]
    assert sorted(words.splitlines(keepends=True)) == sorted(lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("order", [(), ("-W",)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_copy_survives_a_worker_that_dies(tmp_path, number, order, count):
    source, target = tmp_path / "a.raw", tmp_path / "b.raw"
    make_image(source, 96 * MiB)
    copy = Running("--workers", count, *order, "-r", "48M", source, target)
    copy.until_it_moves()
    workers = copy.workers()
    assert len(workers) == count
    os.kill(workers[0], number)
    code, words = copy.end(30)
    assert code == 0
    warned(words, workers[:1], number)
    assert identical(source, target)


@pytest.mark.parametrize("order", [(), ("-W",)])
def test_a_copy_survives_all_its_workers(tmp_path, order):
    """Two of two, at once; what they wrote and did not flush is written again by those that replace them."""
    source, target = tmp_path / "a.raw", tmp_path / "b.raw"
    make_image(source, 96 * MiB)
    copy = Running("--workers", 2, *order, "-r", "48M", source, target)
    copy.until_it_moves()
    workers = copy.workers()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    code, words = copy.end(30)
    assert code == 0
    warned(words, workers)
    assert identical(source, target)


@pytest.mark.parametrize("order", [(), ("-W",)])
@pytest.mark.parametrize("count", [2, 3])
def test_a_copy_between_servers_survives_a_worker_that_dies(own_nfs, own_iscsi, tmp_path, order, count):
    source, backing = own_nfs.path("dies.raw"), tmp_path / "lun.img"
    make_image(source, 96 * MiB)
    with backing.open("wb") as file:
        file.write(b"\xa5" * (96 * MiB))
    url = own_iscsi.url(IQN, own_iscsi.add_lun(IQN, backing))
    copy = Running("--workers", count, *order, "-r", "48M", own_nfs.url("dies.raw"), url)
    copy.until_it_moves()
    workers = copy.workers()
    os.kill(workers[-1], signal.SIGKILL)
    code, words = copy.end(30)
    assert code == 0
    warned(words, workers[-1:])
    assert identical(source, backing)


def test_a_comparison_survives_a_worker_that_dies(tmp_path):
    other = tmp_path / "b.raw"
    with other.open("wb") as file:
        file.truncate(4 * GiB)
        file.seek(3 * GiB + 512)
        file.write(b"\x02")
    copy = Running("--workers", 2, "null:?size=4G", other, command="compare")  # null: names no holes: all is read
    while len(workers := copy.workers()) < 2:  # looked for early: it is over within seconds
        assert copy.process.poll() is None
    copy.until_it_moves()
    os.kill(workers[0], signal.SIGKILL)
    code, words = copy.end(30)
    assert code == 1
    warned(words, workers[:1])
    assert f"Content mismatch at offset {3 * GiB + 512}!".encode() in copy.shown


@pytest.mark.parametrize("order", [(), ("-W",)])
def test_workers_that_die_again_and_again_end_the_copy(order):
    copy = Running("--workers", 2, *order, *LONG)
    copy.until_it_moves()
    while copy.process.poll() is None:
        for pid in copy.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    code, words = copy.end()
    assert code == 1
    *warnings, last = words.splitlines(keepends=True)
    assert len(warnings) == 4
    assert all("its work is done again by others" in line for line in warnings), words
    one_line(last, "a worker process", "target is incomplete", "run the command again")


def test_a_nursery_that_dies_ends_the_copy():
    """Nobody knows then whether its workers still write."""
    copy = Running("--workers", 2, *LONG)
    copy.until_it_moves()
    os.kill(_parent(copy.workers()[0]), signal.SIGKILL)
    code, words = copy.end()
    assert code == 1
    one_line(words, "the process that starts the workers ended", "target is incomplete")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it(number):
    copy = Running("--workers", 3, *ENDLESS)
    copy.until_it_moves()
    os.killpg(copy.process.pid, number) if number == signal.SIGINT else copy.process.send_signal(number)
    code, words = copy.end()
    assert code == 128 + number
    one_line(words, "interrupted" if number == signal.SIGINT else "terminated", "target is incomplete")


def test_ctrl_c_while_a_server_is_silent(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        copy = Running(f"iscsi://127.0.0.1:{mute.getsockname()[1]}/iqn.x/1", tmp_path / "b.raw")
        connection, _ = mute.accept()
        copy.process.send_signal(signal.SIGINT)
        code, words = copy.end()
        connection.close()
    assert code == 128 + signal.SIGINT
    one_line(words, "interrupted")


def test_a_killed_coordinator_takes_its_workers_with_it():
    copy = Running("--workers", 3, *ENDLESS)
    copy.until_it_moves()
    copy.process.kill()
    code, _ = copy.end()
    assert code == -signal.SIGKILL


def test_a_killed_coordinator_takes_workers_with_it_that_do_not_notice():
    copy = Running("--workers", 2, *ENDLESS)
    copy.until_it_moves()
    for pid in copy.workers():
        os.kill(pid, signal.SIGSTOP)
    copy.process.kill()
    code, _ = copy.end()
    assert code == -signal.SIGKILL


def test_a_signal_that_asks_for_progress_harms_no_worker(tmp_path):
    """`pkill -USR1 -f mpconv` reaches them all."""
    source, target = tmp_path / "a.raw", tmp_path / "b.raw"
    make_image(source, 48 * MiB)
    copy = Running("--workers", 2, "-r", "48M", source, target)
    copy.until_it_moves()
    os.killpg(copy.process.pid, signal.SIGUSR1)
    code, words = copy.end(30)
    assert code == 0
    assert re.fullmatch(r" +\([\d.]+/100%\)\n", words)
    assert identical(source, target)


@pytest.fixture
def own_nfs(tmp_path) -> Iterator[NfsServer]:
    with NfsServer(tmp_path / "own-nfs") as server:
        yield server


@pytest.fixture
def own_iscsi(tmp_path) -> Iterator[IscsiServer]:
    with IscsiServer(tmp_path / "own-iscsi") as server:
        server.add_target(IQN)
        yield server


def test_an_nfs_server_that_dies(own_nfs):
    source = own_nfs.path("big.raw")
    with source.open("wb") as file:
        for _ in range(256):
            file.write(os.urandom(MiB) * 4)
    copy = Running("--workers", 2, "--retry-for", "0", own_nfs.url("big.raw"), "null:")
    copy.until_it_moves()
    os.kill(own_nfs.pid, signal.SIGKILL)
    code, words = copy.end()
    assert code == 1
    one_line(words, "error while reading at byte", "big.raw", "connection to the server was lost", "incomplete")


def test_an_iscsi_target_that_dies(own_iscsi, tmp_path):
    backing = tmp_path / "lun.img"
    with backing.open("wb") as file:
        file.truncate(2 * GiB)
    url = own_iscsi.url(IQN, own_iscsi.add_lun(IQN, backing))
    copy = Running("--workers", 2, "--retry-for", "0", "-S", "0", "null:?size=2G", url)
    copy.until_it_moves()
    os.kill(own_iscsi.pid, signal.SIGKILL)
    code, words = copy.end()
    assert code == 1
    one_line(words, "error while writing at byte", "connection to the target was lost", "incomplete")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "none", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.parametrize("order", [(), ("-W",)])
def test_a_full_disk_is_an_error_with_the_byte(small_disk, order):
    done = mpconv("convert", *order, "-S", "0", "null:?size=64M", small_disk / "b.raw")
    assert done.returncode == 1
    one_line(done.stderr, "error while writing at byte", "b.raw", "No space left on device", "incomplete")


def test_a_full_disk_behind_nfs(small_disk, tmp_path):
    with NfsServer(tmp_path / "full-nfs", small_disk / "export") as server:
        done = mpconv("convert", "-S", "0", "null:?size=64M", server.url("b.raw"))
        assert done.returncode == 1
        one_line(done.stderr, "error while writing at byte", "b.raw", "No space left on device", "incomplete")


def test_a_full_disk_behind_iscsi(small_disk, own_iscsi):
    backing = small_disk / "lun.img"
    with backing.open("wb") as file:
        file.truncate(64 * MiB)
    url = own_iscsi.url(IQN, own_iscsi.add_lun(IQN, backing))
    done = mpconv("convert", "-W", "-S", "0", "null:?size=64M", url)
    assert done.returncode == 1
    one_line(done.stderr, "error while writing at byte", "incomplete")


def test_a_source_that_shrinks_is_an_error_not_zeros(own_nfs, tmp_path):
    source = own_nfs.path("shrinks.raw")
    with source.open("wb") as file:
        for _ in range(256):
            file.write(os.urandom(MiB) * 4)
    copy = Running("--workers", 2, own_nfs.url("shrinks.raw"), "null:")
    copy.until_it_moves()
    os.truncate(source, 20 * MiB)
    code, words = copy.end()
    assert code == 1
    one_line(words, "error while reading at byte", "shrink")


def test_after_a_failure_the_same_command_succeeds(small_disk, tmp_path):
    make_image(tmp_path / "a.raw", 30 * MiB)
    assert mpconv("convert", tmp_path / "a.raw", small_disk / "b.raw").returncode == 1
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = mpconv("convert", tmp_path / "a.raw", small_disk / "b.raw")
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(tmp_path / "a.raw", small_disk / "b.raw")


def test_no_password_in_ps(own_iscsi, tmp_path):
    backing = tmp_path / "chap.img"
    with backing.open("wb") as file:
        file.truncate(2 * GiB)
    iqn = own_iscsi.add_target(IQN + "-chap", ("user", "hush-secret-12"))
    url = own_iscsi.url(iqn, own_iscsi.add_lun(iqn, backing)).replace("iscsi://", "iscsi://user%hush-secret-12@")
    copy = Running("--workers", 2, "-S", "0", "null:?size=2G", url)
    copy.until_it_moves()
    lines = copy.members().values()
    assert len(lines) >= 4 and not any("secret" in line for line in lines), lines
    assert any("iscsi://user%xxx" in line for line in lines)
    copy.process.send_signal(signal.SIGINT)
    code, words = copy.end()
    assert code == 128 + signal.SIGINT and "secret" not in words
