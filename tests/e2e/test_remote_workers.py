"""Workers on other hosts, which are network namespaces here; storage and the coordinator are on this side."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.conftest import identical, make_image, mpconv
from tests.support import namespaces
from tests.support.hosts import CONTROL, STORAGE, Host, Recording, add_addresses, host
from tests.support.servers import IscsiServer, NfsServer, free_port

MiB = 1 << 20
IQN = "iqn.2026-11.org.mpconv:remote"
PASSWORD = "not-for-others1"
pytestmark = pytest.mark.skipif(not namespaces.possible(), reason="needs network namespaces")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NfsServer, IscsiServer]]:
    add_addresses()
    with (
        NfsServer(tmp_path_factory.mktemp("remote-nfs"), address=STORAGE) as nfs,
        IscsiServer(tmp_path_factory.mktemp("remote-iscsi"), address=STORAGE) as iscsi,
    ):
        iscsi.add_target(IQN, chap=("mover", PASSWORD))
        yield nfs, iscsi


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    assert mpconv("keygen", path).returncode == 0
    return path


class Lab:
    """One copy from NFS to iSCSI, and the hosts of its workers."""

    def __init__(self, servers: tuple[NfsServer, IscsiServer], keys: Path, directory: Path, stack: ExitStack) -> None:
        self.nfs, self.iscsi = servers
        self.keys = keys
        self.directory = directory
        self._stack = stack
        self._hosts: list[Host] = []
        self.endpoint = f"tcp://{CONTROL}:{free_port()}"
        self.source = self.nfs.path(f"{directory.name}.raw")
        self.target = directory / "lun"

    def image(self, size: int, *, random: bool = False) -> None:
        if random:
            self.source.write_bytes(os.urandom(size))
        else:
            make_image(self.source, size)
        self.lun = self.add_lun(self.target, size)

    def add_lun(self, path: Path, size: int) -> str:
        """The URL of a LUN whose bytes are those of a new file."""
        with path.open("wb") as file:
            file.truncate(size)
        number = self.iscsi.add_lun(IQN, path)
        return self.iscsi.url(IQN, number).replace("://", f"://mover%{PASSWORD}@")

    def host(self) -> Host:
        made = self._stack.enter_context(host())
        self._hosts.append(made)
        return made

    def worker(self, at: Host, *options: str, keys: Path | None = None) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "mpconv", "worker", "--connect", self.endpoint, "--key-file"]
        words += [str(keys or self.keys), "--workers", "2", *options]
        return at.run(*words, log=self.log(at))

    def log(self, at: Host) -> Path:
        return self.directory / f"{at.name}.log"

    def words(self, at: Host) -> str:
        return self.log(at).read_text()

    def convert(self, *options: str, command: str = "convert", more: Sequence[str] = ()) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "mpconv", command, "-n", "--listen", self.endpoint, "--key-file"]
        words += [str(self.keys), "--workers", "0", *options, self.nfs.url(self.source.name), self.lun, *more]
        pipe = subprocess.PIPE
        made = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)
        self._stack.callback(made.kill)
        return made


@pytest.fixture
def lab(servers: tuple[NfsServer, IscsiServer], keys: Path, tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(servers, keys, tmp_path, stack)


def ended(process: subprocess.Popen, seconds: float = 60) -> int:
    return process.wait(seconds)


def done(copy: subprocess.Popen[str]) -> list[str]:
    """Wait for the copy; its lines on stderr."""
    _, words = copy.communicate(timeout=60)
    assert copy.returncode == 0, words
    return words.splitlines()


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def connected(endpoint: str) -> socket.socket:
    """Once that can be: whether the address can be had is tried before the coordinator listens there for good."""
    made: list[socket.socket] = []

    def connects() -> bool:
        with suppress(ConnectionRefusedError):
            made.append(socket.create_connection((CONTROL, port_of(endpoint))))
        return bool(made)

    until(connects)
    return made[0]


def written(path: Path) -> int:
    """Bytes that a sparse file has."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("order", [("-W",), ()])
def test_workers_on_two_hosts_copy_what_none_copies_here(lab, order):
    """They come before the coordinator. Nothing that is secret is said in the open."""
    lab.image(64 * MiB)
    one, two = lab.host(), lab.host()
    with Recording(one.to_control, keep=True) as said:
        workers = [lab.worker(one), lab.worker(two)]
        until(lambda: "waiting for a coordinator" in lab.words(one) + lab.words(two))
        assert done(lab.convert(*order)) == []
        assert [ended(worker) for worker in workers] == [0, 0]
    assert identical(lab.source, lab.target)
    assert len(said.kept) > 1000
    for secret in (PASSWORD, lab.source.name, IQN, "nfs://", "hello", "lease"):
        assert secret.encode() not in said.kept


def test_a_template_is_read_once_by_all_hosts_together(lab):
    """Two LUNs, two hosts: what the storage sends to them is one template and what answers to writes take."""
    lab.image(64 * MiB, random=True)
    second = lab.directory / "second"
    hosts = [lab.host(), lab.host()]
    copy = lab.convert("-W", "-r", "32M", command="deploy", more=[lab.add_lun(second, 64 * MiB)])
    workers = [lab.worker(at) for at in hosts]
    assert done(copy) == []
    assert [ended(worker) for worker in workers] == [0, 0]
    read = [at.heard_from_storage() for at in hosts]
    assert min(read) > 8 * MiB
    assert sum(read) < 1.1 * 64 * MiB
    assert identical(lab.source, lab.target) and identical(lab.source, second)


def test_who_has_no_key_gets_nowhere_and_is_counted(lab, tmp_path):
    """A wrong key, none, a web browser, noise and silence, all while the copy runs."""
    lab.image(24 * MiB, random=True)
    good, bad = lab.host(), lab.host()
    wrong = tmp_path / "wrong"
    assert mpconv("keygen", wrong).returncode == 0
    half = tmp_path / "half"
    text = wrong.read_text().splitlines()
    text[1] = lab.keys.read_text().splitlines()[1]  # the coordinator's public key: all that a listener could know
    half.touch(0o600)
    half.write_text("\n".join(text))
    copy = lab.convert("-W", "-r", "8M")
    connected(lab.endpoint).close()
    strangers = [lab.worker(bad, keys=wrong), lab.worker(bad, keys=half)]
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + bytes(8) + b"\x7f\x03" + bytes(53), b""):
        with connected(lab.endpoint) as connection:
            connection.sendall(noise)
    worker = lab.worker(good)
    assert [ended(stranger) for stranger in strangers] == [1, 1]
    [warning] = done(copy)
    assert ended(worker) == 0
    assert identical(lab.source, lab.target)
    assert int(warning.split()[2]) >= 6 and "were refused: they had no key of ours" in warning
    assert "does not know the key of this key file" in lab.words(bad)
    assert "does not have the coordinator's key of this key file" in lab.words(bad)


def test_what_was_recorded_and_is_said_again_is_worth_nothing(lab):
    """All that real workers said, from the first byte, on connections of their own, while the copy runs."""
    lab.image(24 * MiB, random=True)
    at = lab.host()
    with Recording(at.to_control, keep=True) as heard:
        copy = lab.convert("-W", "-r", "8M")
        worker = lab.worker(at)
        until(lambda: written(lab.target) > 8 * MiB)
        longest = bytes(max(heard.said.values(), key=len))
        for cut in (len(longest), len(longest) // 2, 300):
            with socket.create_connection((CONTROL, port_of(lab.endpoint))) as connection, suppress(OSError):
                connection.sendall(longest[:cut])
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(10)
                while connection.recv(4096):
                    pass
        [warning] = done(copy)
        assert ended(worker) == 0
    assert len(longest) > 800  # more than the handshake
    assert int(warning.split()[2]) >= 3 and "were refused: they had no key of ours" in warning
    assert identical(lab.source, lab.target)


def test_hosts_come_and_go(lab):
    """One joins late, one leaves by SIGTERM and gives back what it has, one is killed with all its processes."""
    lab.image(40 * MiB, random=True)
    stays, leaves, dies = lab.host(), lab.host(), lab.host()
    copy = lab.convert("-r", "12M", "--fence", "0.5", "-v")
    workers = {at.name: lab.worker(at) for at in (leaves, dies)}
    until(lambda: written(lab.target) > 8 * MiB)
    workers[leaves.name].send_signal(signal.SIGTERM)
    assert ended(workers[leaves.name]) == 0
    assert lab.words(leaves).count("cut off") == 0
    workers[stays.name] = lab.worker(stays)
    os.killpg(workers[dies.name].pid, signal.SIGKILL)
    words = done(copy)
    assert ended(workers[stays.name]) == 0
    assert identical(lab.source, lab.target)
    silent = [line for line in words if "was silent for 1.5 seconds" in line]
    assert len(silent) == 2, words


def test_a_host_that_is_cut_off_stops_before_others_write_in_its_place(lab):
    """Its link to the coordinator is taken down in the middle of writes, and the one to the storage stays: the fence
    alone keeps it from writing. That link is slow, so that there is always something on its way.
    """
    lab.image(48 * MiB, random=True)
    lost, other = lab.host(), lab.host()
    lost.slow_storage(16)
    with Recording(lost.to_storage) as writes:
        copy = lab.convert("-W", "--fence", "1")
        loser = lab.worker(lost, "--wait", "60")
        until(lambda: sum(size for _, size in writes.sent) > MiB)
        cut_at = time.monotonic()
        lost.cut(lost.to_control)
        worker = lab.worker(other)
        until(lambda: "was cut off" in lab.words(lost))
        words = done(copy)
    fenced_at = cut_at + 1.4  # the last heartbeat may just have been answered; and the interface's queue runs dry
    assert writes.sent_after(cut_at) > 0.5 * MiB, "nothing was on its way"
    assert writes.sent_after(fenced_at) == 0
    assert ended(worker) == 0
    assert identical(lab.source, lab.target)
    assert [line for line in words if f"worker 1 on {socket.gethostname()} was silent" in line], words
    assert loser.poll() is None, "it looks for a coordinator"
    loser.send_signal(signal.SIGTERM)
    assert ended(loser) == 0


def test_a_host_that_comes_back_has_other_workers(lab):
    """Both links are taken down and up again, while the copy goes on."""
    lab.image(24 * MiB, random=True)
    lost, other = lab.host(), lab.host()
    copy = lab.convert("-W", "-r", "8M", "--fence", "0.5")
    workers = [lab.worker(lost), lab.worker(other)]
    until(lambda: written(lab.target) > 4 * MiB)
    lost.cut(lost.to_control, lost.to_storage)
    until(lambda: lab.words(lost).count("was cut off") == 2)
    lost.mend(lost.to_control, lost.to_storage)
    done(copy)
    assert [ended(worker) for worker in workers] == [0, 0]
    assert identical(lab.source, lab.target)


def test_the_kernel_fences_a_worker_that_stands_still(lab):
    """Stopped while it may write, and set going again when others have written in its place: it sends nothing more."""
    lab.image(24 * MiB, random=True)
    lost, other = lab.host(), lab.host()
    lost.slow_storage(16)
    with Recording(lost.to_storage) as writes:
        copy = lab.convert("-W", "--fence", "0.5")
        stopped = lab.worker(lost)
        until(lambda: sum(size for _, size in writes.sent) > MiB)
        workers = lost.processes("copy-worker")
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        worker = lab.worker(other)
        words = done(copy)
        gone_on_at = time.monotonic()
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        until(lambda: lab.words(lost).count("was cut off") == 2)
        assert writes.sent_after(gone_on_at) == 0
    assert len(workers) == 2 == len([line for line in words if "was silent" in line])
    assert ended(worker) == 0
    stopped.send_signal(signal.SIGTERM)
    assert ended(stopped) == 0
    assert identical(lab.source, lab.target)


def test_a_worker_of_another_version_is_told_so_and_the_copy_goes_on(lab, tmp_path):
    lab.image(16 * MiB, random=True)
    old, new = lab.host(), lab.host()
    copy = lab.convert("-W", "-r", "8M")
    entry = "import sys; from mpconv.protocol import messages; messages.VERSION = 4; from mpconv.cli import run; run()"
    words = ["worker", "--connect", lab.endpoint, "--key-file", str(lab.keys), "--workers", "1"]
    assert ended(old.run(sys.executable, "-c", entry, *words, log=lab.log(old))) == 1
    worker = lab.worker(new)
    [warning] = done(copy)
    assert "was refused: its mpconv is older than this one: install the same version on all hosts" in warning
    assert "the mpconv of this host is older than the one that it is to work for" in lab.words(old)
    assert ended(worker) == 0
    assert identical(lab.source, lab.target)


def test_files_of_one_host_are_refused_unless_they_are_shared(tmp_path, keys):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(MiB))
    listening = ["--listen", "tcp://127.0.0.1:0", "--key-file", keys]
    done = mpconv("convert", *listening, source, target)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"mpconv: --listen: '{source}' is a file of this host; if all hosts have the same: --shared-files"
    ]
    assert not target.exists()
    assert mpconv("convert", *listening, "--shared-files", source, target).returncode == 0
    assert identical(source, target)


@pytest.mark.parametrize("command", ["convert", "deploy"])
def test_workers_are_told_names_that_do_not_depend_on_where_they_stand(tmp_path, keys, command):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "b.raw").write_bytes(b"\xa5" * 3 * MiB)
    (here / "a.raw").write_bytes(os.urandom(3 * MiB))
    (there / "a.raw").write_bytes(os.urandom(3 * MiB))
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    at = [sys.executable, "-m", "mpconv", "worker", "--connect", endpoint, "--key-file", str(keys), "--workers", "1"]
    at.append("--shared-files")
    worker = subprocess.Popen(at, cwd=there, stderr=subprocess.PIPE)
    listening = ["--listen", endpoint, "--key-file", keys, "--shared-files", "--workers", "0"]
    done = mpconv(command, *listening, "-f", "raw", "-n", "a.raw", "b.raw", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert ended(worker) == 0
    assert identical(here / "a.raw", here / "b.raw")
    assert (there / "b.raw").read_bytes() == b"\xa5" * 3 * MiB


def test_a_worker_opens_no_files_of_its_host_for_a_coordinator_unless_it_may(tmp_path, keys):
    (tmp_path / "shared").mkdir()
    source, target = tmp_path / "shared" / "source", tmp_path / "shared" / "target"
    source.write_bytes(os.urandom(MiB))
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    words = [sys.executable, "-m", "mpconv", "convert", "--listen", endpoint, "--key-file", str(keys)]
    words += ["--shared-files", "--workers", "0", str(source), str(target)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as copy:
        worker = ["worker", "--connect", endpoint, "--key-file", keys, "--workers", "1"]
        for options in ([], [f"--shared-files={tmp_path}/elsewhere"]):
            refused = mpconv(*worker, *options)
            assert refused.returncode == 1
            assert "is a file" in refused.stderr or "in none of the directories" in refused.stderr, refused
            assert copy.poll() is None and not any(target.read_bytes())
        assert mpconv(*worker, f"--shared-files={tmp_path}/shared").returncode == 0
        assert copy.wait(60) == 0
    assert identical(source, target)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["convert", "--workers", "0", "a", "b"], "--workers 0 requires --listen or --cluster: nobody would copy"),
        (["convert", "--listen", "tcp://:1", "--key-file", "KEY", "a", "b"], "'tcp://:1' is not of the form"),
        (["convert", "--listen", "tcp://h:1", "a", "b"], "a key file is needed: --key-file FILE"),
        (["convert", "--key-file", "KEY", "a", "b"], "--key-file requires --listen or --cluster"),
        (["convert", "--listen", "tcp://h:1", "--key-file", "WORKERS", "a", "b"], "is for workers alone"),
        (["worker", "--key-file", "KEY"], "Must specify --connect"),
        (
            ["worker", "--connect", "tcp://127.0.0.1:9", "--key-file", "OPEN"],
            "is open to others (mode 0644): chmod 600",
        ),
        (
            ["worker", "--connect", "tcp://127.0.0.1:9", "--key-file", "NONE"],
            "No such file or directory: mpconv keygen NONE makes one",
        ),
        (["worker", "--connect", "tcp://127.0.0.1:9", "--key-file", "BAD"], "the key file 'BAD' is damaged"),
        (
            ["worker", "--connect", "tcp://127.0.0.1:9", "--key-file", "KEY", "--wait", "0.2"],
            "no coordinator at tcp://127.0.0.1:9 for 0.2 seconds: Connection refused (127.0.0.1 port 9): is mpconv",
        ),
        (
            ["worker", "--connect", "tcp://no.such.host.invalid:9", "--key-file", "KEY", "--wait", "0.2"],
            "the host name 'no.such.host.invalid' cannot be resolved",
        ),
        (["convert", "--listen", "tcp://h:1", "--key-file", "TEXT", "a", "b"], "'TEXT' is no key file"),
        (
            ["convert", "--listen", "tcp://198.51.100.1:1", "--key-file", "KEY", "--shared-files", "TEXT", "null:"],
            "--listen: cannot listen at tcp://198.51.100.1:1: Cannot assign requested address: this host has no such",
        ),
        (["keygen", "KEY"], "Could not make key file 'KEY': File exists: keys in use are not overwritten"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, words, why):
    assert mpconv("keygen", "KEY", "--for-workers", "WORKERS", cwd=tmp_path).returncode == 0
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in ("KEY", "WORKERS"))
    content = (tmp_path / "KEY").read_text()
    (tmp_path / "OPEN").write_text(content)
    (tmp_path / "OPEN").chmod(0o644)
    (tmp_path / "TEXT").write_text("no key\n")
    (tmp_path / "BAD").touch(0o600)
    (tmp_path / "BAD").write_text(content.replace("worker-secret ", "worker-secret x"))
    done = mpconv(*words, cwd=tmp_path)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "waiting for a coordinator" not in line]
    assert line.startswith("mpconv: ") and why in line
    assert not any(key in line for key in content.split() if len(key) == 40)


def test_a_key_file_of_another_user_is_refused(tmp_path):
    assert mpconv("keygen", "KEY", cwd=tmp_path).returncode == 0
    os.chown(tmp_path / "KEY", 12345, -1)
    done = mpconv("worker", "--connect", "tcp://127.0.0.1:9", "--key-file", "KEY", "--wait", "0.2", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "mpconv: the key file 'KEY' is another user's (12345): mpconv keygen makes one of your own\n"


@pytest.mark.parametrize("command", ["convert", "deploy"])
def test_where_nobody_can_listen_the_target_stays_as_it_was(tmp_path, command):
    assert mpconv("keygen", "KEY", cwd=tmp_path).returncode == 0
    (tmp_path / "a").write_bytes(b"new" * 1000)
    (tmp_path / "b").write_bytes(b"old")
    with socket.create_server(("127.0.0.1", 0)) as other:
        at = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        listen = ["--listen", at, "--key-file", "KEY", "--shared-files", "-f", "raw"]
        done = mpconv(command, *listen, "a", "b", cwd=tmp_path)
    assert done.returncode == 1
    assert f"--listen: cannot listen at {at}: Address already in use: another program has this port" in done.stderr
    assert (tmp_path / "b").read_bytes() == b"old"
