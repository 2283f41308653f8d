"""Workers placed by dask.distributed: on this host, and on others, which are network namespaces here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.conftest import identical, make_image, mpconv
from tests.support import namespaces
from tests.support.dask import (
    Dask,
    LocalDask,
    alive,
    command_of,
    copying,
    descendants,
    make_certificate,
    until,
)
from tests.support.hosts import CONTROL, add_addresses, host

MiB = 1 << 20
_SLOW = ("-r", "8M")
pytestmark = pytest.mark.skipif(not namespaces.possible(), reason="needs network namespaces")


class Lab:
    """One copy from file to file by workers that are placed."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.source, self.target = directory / "source", directory / "target"

    def image(self, size: int, *, random: bool = True) -> None:
        if random:
            self.source.write_bytes(os.urandom(size))
        else:
            make_image(self.source, size)

    def dask(self, *options: str, **more: object) -> Dask:
        made = Dask(self.directory, *options, **more)
        self.stack.callback(made.close)
        return made

    def convert(self, cluster: str, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "mpconv", "convert", "--cluster", cluster, "--workers", "0", "-W"]
        words += ["--shared-files", "--cluster-workers", "2", *options, str(self.source), str(self.target)]
        pipe = subprocess.PIPE
        made = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env)
        self.stack.callback(made.kill)
        return made

    def written(self) -> int:
        return self.target.stat().st_blocks * 512 if self.target.exists() else 0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


def done(copy: subprocess.Popen[str]) -> list[str]:
    """Wait for the copy; its lines on stderr."""
    _, words = copy.communicate(timeout=60)
    assert copy.returncode == 0, words
    return words.splitlines()


def test_a_local_cluster_copies_what_none_copies_here(lab):
    """The key that is made for the run is in no list of processes and no environment, and nothing is left behind."""
    lab.image(16 * MiB)
    with closing(LocalDask(lab.directory)) as local:
        copy = lab.convert(local.address, *_SLOW, "-v")
        until(lambda: copying(local.process.pid) and lab.written() > MiB)
        placed = [pid for one in copying(local.process.pid) for pid in (one, *descendants(one))]
        [command] = copying(local.process.pid)  # one call a host
        words = command_of(command)
        assert words[words.index("worker") + 1 :: 2] == [
            "--connect",
            "--wait",
            "--parent",
            "--key-file",
            "--workers",
            "--shared-files=/",
        ]
        assert words[words.index("--key-file") + 1] == "/dev/stdin"
        assert [environment(pid) for pid in placed] == [environment(parent_of(command))] * len(placed)
        words = done(copy)
        assert not alive(command)
        until(lambda: not any(map(alive, placed)), 5)
    assert identical(lab.source, lab.target)
    assert "mpconv: workers are placed on 127.0.0.1" in words
    assert [line for line in words if "warning" in line] == []


def test_two_hosts_of_a_cluster_with_tls(lab):
    """The key passes through the scheduler; then one of them is chosen by name, and the other one by a resource."""
    add_addresses()
    lab.image(32 * MiB)
    dask = lab.dask(CONTROL, tls=make_certificate(lab.directory))
    one, two = lab.stack.enter_context(host()), lab.stack.enter_context(host())
    dask.worker("first", at=one)
    dask.worker("second", "--resources", "mpconv=1", at=two)
    copy = lab.convert(dask.address, "-r", "12M", env=dask.env)
    until(lambda: one.processes("copy-worker") and two.processes("copy-worker"))
    assert done(copy) == []
    assert identical(lab.source, lab.target)
    for choice, chosen, other in (("--cluster-hosts=first", one, two), ("--cluster-resource=mpconv=1", two, one)):
        lab.target.unlink()
        copy = lab.convert(dask.address, "-r", "24M", choice, env=dask.env)
        until(lambda chosen=chosen: chosen.processes("copy-worker"))
        assert not other.processes("copy-worker")
        assert done(copy) == []
        assert identical(lab.source, lab.target)


def test_no_key_passes_in_the_clear_to_another_host(lab):
    """The scheduler is on this host, its worker is not. With a key file, and an address that it reaches, it works."""
    add_addresses()
    lab.image(MiB, random=False)
    key = lab.directory / "keys"
    assert mpconv("keygen", key).returncode == 0
    dask = lab.dask("0.0.0.0")
    port = dask.address.rpartition(":")[2]
    here, there = f"tcp://127.0.0.1:{port}", f"tcp://{CONTROL}:{port}"
    dask.worker("elsewhere", at=lab.stack.enter_context(host()), address=there)
    for options, why in (
        ((), "the key would pass to it in the clear; use tls://, or a --key-file that all hosts have"),
        (("--key-file", str(key)), "is another one there; say --listen tcp://ADDR:PORT, where it reaches this host"),
    ):
        copy = lab.convert(here, *options)
        _, words = copy.communicate(timeout=30)
        warning, error = words.splitlines()
        assert copy.returncode == 1
        assert why in warning
        incomplete = "the warnings above say why (the target is incomplete, so it was removed: "
        assert error.startswith(f"mpconv: no host of the Dask cluster takes part: {incomplete}")
        assert not Path(lab.target).exists()
    assert done(lab.convert(there, "--key-file", str(key), "--listen", "tcp://0.0.0.0:0")) == []
    assert identical(lab.source, lab.target)


def test_deploy_and_resume_place_workers_too(lab):
    lab.image(8 * MiB, random=False)
    targets = [lab.directory / name for name in ("one", "two")]
    with closing(LocalDask(lab.directory)) as local:
        placed = ["--cluster", local.address, "--workers", "0", "--shared-files"]
        assert mpconv("deploy", *placed, lab.source, *targets).returncode == 0
        assert all(identical(lab.source, target) for target in targets)
        journal = lab.directory / "journal"
        copy = lab.convert(local.address, "-r", "2M", "--journal", str(journal))
        until(lambda: lab.written() > MiB)
        copy.send_signal(signal.SIGINT)
        assert copy.wait(30) == 130
        made = mpconv("resume", *placed, journal)
        assert (made.returncode, made.stderr) == (0, "")
    assert identical(lab.source, lab.target)


def test_a_fanout_places_workers_for_all_of_its_jobs(lab):
    """And it ends when no host takes part; what is done then, and by whom, the journal keeps."""
    names = ("one", "two", "three")
    for seed, name in enumerate(names):
        make_image(lab.directory / name, 4 * MiB, seed)
    plan = lab.directory / "plan.toml"
    jobs = [f'[[job]]\nname = "{name}"\nsource = "{lab.directory / name}"\n' for name in names]
    plan.write_text(f'[defaults]\ntarget = "{lab.directory}/{{name}}.copy"\noob_writes = true\n' + "".join(jobs))
    with closing(LocalDask(lab.directory)) as local:
        made = mpconv("fanout", "--cluster", local.address, "--workers", "0", "--shared-files", plan)
    assert made.returncode == 0, made.stderr
    for name in names:
        assert identical(lab.directory / name, lab.directory / f"{name}.copy")
    old = lab.dask()
    old.worker("old", env=of_another_version(lab.directory))
    made = mpconv("fanout", "--cluster", old.address, "--workers", "0", "--shared-files", "--json", plan)
    assert made.returncode == 1
    assert made.stderr.splitlines()[-1] == "mpconv: no host of the Dask cluster takes part: the warnings above say why"
    assert {job["result"] for job in json.loads(made.stdout)["jobs"]} <= {"stopped", "left", "failed"}


def of_another_version(directory: Path) -> dict[str, str]:
    """What has the commands of an environment speak another version of the protocol."""
    (directory / "sitecustomize.py").write_text("from mpconv.protocol import messages\nmessages.VERSION = 4\n")
    return {"PYTHONPATH": str(directory)}


def test_a_dask_worker_is_killed_and_its_children_with_it(lab):
    """Its nanny starts another one, which gets its share."""
    lab.image(24 * MiB)
    dask = lab.dask()
    dask.worker("only")
    copy = lab.convert(dask.address, *_SLOW)
    until(lambda: lab.written() > 2 * MiB)
    [command] = copying_of(dask)
    orphans = [command, *descendants(command)]
    os.kill(parent_of(command), signal.SIGKILL)
    until(lambda: not any(map(alive, orphans)), 12)
    words = done(copy)
    assert identical(lab.source, lab.target)
    assert [line for line in words if "the Dask worker on 127.0.0.1 is gone" in line], words
    assert not any("silent" in line for line in words), words


def test_the_scheduler_is_killed_and_who_works_goes_on(lab):
    lab.image(24 * MiB)
    dask = lab.dask()
    dask.worker("only")
    copy = lab.convert(dask.address, *_SLOW)
    until(lambda: lab.written() > 2 * MiB)
    placed = copying_of(dask)
    dask.scheduler.kill()
    [warning] = done(copy)
    assert identical(lab.source, lab.target)
    assert f"the Dask scheduler at {dask.address} is lost: the workers that are there go on" in warning
    until(lambda: not any(map(alive, placed)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_ends_and_those_it_placed_do(lab, number):
    lab.image(24 * MiB)
    with closing(LocalDask(lab.directory)) as local:
        copy = lab.convert(local.address, *_SLOW)
        until(lambda: lab.written() > 2 * MiB)
        [command] = copying(local.process.pid)
        placed = [pid for pid in descendants(command) if name_of(pid) == "copy-worker"]
        assert len(placed) == 2
        copy.send_signal(number)
        _, words = copy.communicate(timeout=30)
        assert copy.returncode == (128 + number if number != signal.SIGKILL else -number)
        if number != signal.SIGKILL:
            assert not alive(command)
            assert len(words.splitlines()) == 1, words
        until(lambda: not any(map(alive, placed)))


def test_hosts_of_another_version_do_not_take_part(lab):
    """There is no other one, so the copy ends."""
    lab.image(MiB)
    dask = lab.dask()
    dask.worker("old", env=of_another_version(lab.directory))
    copy = lab.convert(dask.address)
    _, words = copy.communicate(timeout=30)
    assert copy.returncode == 1
    *_, host_says, last = words.splitlines()
    assert "127.0.0.1 does not take part: the coordinator at tcp://" in host_says
    assert "of the Dask cluster takes part" in last
    assert any("its mpconv is older than this one: install the same" in line for line in words.splitlines())


def environment(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/environ").read_text().split("\0"))


def copying_of(dask: Dask) -> list[int]:
    return [one for process in dask.started for one in copying(process.pid)]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_without_dask_one_line_says_what_to_install(tmp_path):
    entry = "import sys; sys.modules['distributed'] = None; from mpconv.cli import run; run()"
    words = [sys.executable, "-c", entry, "convert", "--cluster", "tcp://127.0.0.1:1", "nfs://h/e/a", "nfs://h/e/b"]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert made.stderr.splitlines() == [
        "mpconv: --cluster needs dask.distributed, which is not installed: pip install 'mpconv[dask]'"
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--cluster", "10.0.0.1:8786"], "'10.0.0.1:8786' is not of the form tcp://HOST:PORT or tls://HOST:PORT"),
        (["--cluster", "tcp://10.0.0.1:8786"], "the workers' key would pass in the clear; use a tls:// scheduler, or"),
        (
            ["--cluster", "tcp://127.0.0.1:9"],
            "the Dask scheduler at tcp://127.0.0.1:9 cannot be reached: Connection refused",
        ),
        (["--cluster", "tls://127.0.0.1:9"], "the Dask scheduler at tls://127.0.0.1:9 cannot be reached: "),
        (["--cluster", "tcp://127.0.0.1:9", "--cluster-resource", "mpconv"], "'mpconv' is not of the form NAME=N"),
        (["--cluster-hosts", "a"], "--cluster-hosts requires --cluster"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, options, why):
    source = tmp_path / "source"
    source.write_bytes(bytes(MiB))
    made = mpconv("convert", *options, "--shared-files", source, tmp_path / "target")
    assert made.returncode == 1
    [line] = made.stderr.splitlines()
    assert line.startswith("mpconv: ") and why in line
    assert not (tmp_path / "target").exists()
