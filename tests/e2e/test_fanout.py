"""Many copies by one plan: LUNs of a real target to files on a real NFS server, by workers of several hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import identical, make_image, mpconv
from tests.support import namespaces
from tests.support.hosts import CONTROL, STORAGE, Host, add_addresses, host
from tests.support.servers import IscsiServer, NfsServer, free_port

MiB = 1 << 20
IQN = "iqn.2026-11.org.mpconv:fanout"
GUARDED = f"{IQN}-guarded"
PASSWORD = "not-for-others1"
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
    assert fanout.poll() is None, "it was over before"
    found, _ = ended(fanout)
    assert helps.wait(20) == 0, (tmp_path / "stays.log").read_text()
    assert found["written"] == len(found["jobs"]) == 20
    plan.check()


def test_all_processes_are_killed_and_the_rest_is_done_later(plan):
    """What was finished is not done again; what was begun goes on; what was not is done."""
    for number in range(8):
        plan.add(f"vm{number}", 6 * MiB, KINDS[number % len(KINDS)])
    plan.head('jobs = 2\nworkers = 2\nrate = "12M"', "digest = true")
    fanout = plan.start("--journal", plan.journal, "--progress=json")
    assert fanout.stdout is not None
    states = (json.loads(line) for line in fanout.stdout)
    done = [next(line["job"] for line in states if line["phase"] == "done") for _ in range(3)]
    os.killpg(fanout.pid, signal.SIGKILL)
    fanout.wait(20)
    lun = plan.luns[done[0]]
    plan.luns[done[0]] = lun.with_suffix(".as_it_was")
    shutil.copy(lun, plan.luns[done[0]])
    lun.write_bytes(b"\xa5" * (6 * MiB))  # nobody reads it again

    refused = mpconv("fanout", "--journal", plan.journal, plan.path)
    assert refused.returncode == 1
    assert "has an unfinished fan-out: go on with it: mpconv resume" in refused.stderr
    states = {
        job["job"]: job["state"] for job in json.loads(mpconv("status", "--output=json", plan.journal).stdout)["jobs"]
    }
    assert {states[name] for name in done} == {"finished"}
    assert "killed" in states.values() and "not begun" in states.values()

    found, _ = ended(plan.start("--json", command="resume", of=plan.journal))
    assert found["written"] == 8
    assert all(result_of(found, name)["attempts"] == 0 for name in done)
    plan.check()
    again, words = ended(plan.start("--json", command="resume", of=plan.journal))
    assert again["written"] == 8 and words == []
    assert [job["digest"] for job in again["jobs"]] == [job["digest"] for job in found["jobs"]]


def test_a_job_that_is_tried_again_goes_on_where_it_was(plan, tmp_path):
    """Also when its URL has a password, which the journal does not have; and nobody else gets to see it."""
    plan.iscsi.add_target(GUARDED, chap=("mover", PASSWORD))
    for name in ("one", "two"):
        backing = plan.luns[name] = tmp_path / f"{name}.lun"
        backing.write_bytes(os.urandom(24 * MiB))
        url = plan.iscsi.url(GUARDED, plan.iscsi.add_lun(GUARDED, backing)).replace("://", f"://mover%{PASSWORD}@")
        plan.parts.append(f'[[job]]\nname = "{name}"\nsource = "{url}"\n')
    plan.head('jobs = 2\nworkers = 2\nrate = "8M"', "retry_for = 0\nretries = 20")
    fanout = plan.start("--journal", plan.journal, "--json", "-v")

    def durable() -> int:
        told = mpconv("status", "--output=json", plan.journal).stdout
        return min(job["durable"] for job in json.loads(told)["jobs"]) if told else 0

    until(lambda: durable() > 2 * MiB)
    plan.iscsi.restart()
    found, words = ended(fanout)
    assert found["written"] == 2 and all(job["attempts"] > 1 for job in found["jobs"]), words
    plan.check()
    events = json.loads(mpconv("status", "--output=json", plan.journal / "one.journal").stdout)["happened"]
    assert [event["what"] for event in events].count("began") == 1
    assert "resumed" in [event["what"] for event in events]
    assert PASSWORD not in json.dumps(found) + "".join(words)
    assert not [path for path in plan.journal.iterdir() if PASSWORD.encode() in path.read_bytes()]


def test_what_an_old_write_could_spoil_is_not_tried_again(plan):
    """Without a journal nobody knows where in a qcow2 image the last attempt may still write."""
    plan.add("raw", 10 * MiB)
    plan.add("qcow2", 10 * MiB, 'target_format = "qcow2"')
    plan.head('jobs = 2\nworkers = 2\nrate = "6M"', "retry_for = 0\nretries = 20")
    fanout = plan.start("--json")
    until(lambda: all(written(plan.image(name)) > MiB for name in ("raw", "qcow2")))
    plan.iscsi.restart()
    found, words = ended(fanout, code=2)
    assert result_of(found, "raw")["attempts"] > 1
    assert result_of(found, "qcow2")["attempts"] == 1
    assert result_of(found, "qcow2")["why"].endswith("only with --journal that would be safe"), words
    plan.check("qcow2")


def test_a_job_that_cannot_work_stops_no_other(plan):
    plan.add("good", 3 * MiB, KINDS[1])
    plan.parts.append(f'[[job]]\nname = "bad"\nsource = "{plan.nfs.url("nothing.raw")}"\n')
    plan.add("better", 3 * MiB)
    plan.head("jobs = 2")
    found, words = ended(plan.start("--json"), code=2)
    assert [job["result"] for job in found["jobs"]] == ["written", "failed", "written"]
    assert result_of(found, "bad")["attempts"] == 1
    assert "No such file or directory" in result_of(found, "bad")["why"]
    assert "mpconv: 2 of 3 jobs are written" in words
    plan.check()


def test_ctrl_c_ends_all_jobs_softly_and_they_go_on_later(plan):
    """Two run, and end what they are writing; two more never begin."""
    for number in range(4):
        plan.add(f"vm{number}", 24 * MiB, 'oob_writes = true\ntarget_format = "qcow2"' if number % 2 else "")
    plan.head('jobs = 2\nworkers = 2\nrate = "8M"')
    fanout = plan.start("--journal", plan.journal, "--json")
    until(lambda: plan.copied() > 8 * MiB)
    os.killpg(fanout.pid, signal.SIGINT)
    found, words = ended(fanout, code=130)
    assert sorted(job["result"] for job in found["jobs"]) == ["not begun", "not begun", "stopped", "stopped"]
    durable = [job["durable"] for job in json.loads(mpconv("status", "--output=json", plan.journal).stdout)["jobs"]]
    assert durable == [job["done"] for job in found["jobs"]] and sum(durable) > 0
    assert words[-2:] == [f"mpconv: go on with: mpconv resume {plan.journal}", "mpconv: interrupted"]
    found, _ = ended(plan.start("--rate-limit", "0", "--json", command="resume", of=plan.journal))
    assert found["written"] == 4
    plan.check()


def test_check_names_all_that_is_wrong_and_writes_nothing(plan, tmp_path):
    plan.add("one", MiB)
    plan.add("two", MiB, "compres = true\ncompress = true")
    plan.add("three", MiB, 'compress = true\nsparse_size = "17"\ntarget_format = "raw"')
    plan.add("four", MiB, 'target = "/nowhere/{nme}.img"\npriority = "high"')
    plan.add("five", MiB, f'target = "{plan.nfs.url(plan.directory.name)}/one-{{date}}.img"')
    plan.parts.append('[[job]]\nsource = "x"\ntarget = "y"\n')
    plan.head('jobs = 4\nworkers = 2\nspeed = 1\n[limits.servers]\n"nas" = "1M"')
    done = mpconv("fanout", "--check", plan.write())
    assert done.returncode == 1 and done.stdout == ""
    said = [line.removeprefix(f"mpconv: {plan.path}: ") for line in done.stderr.splitlines()]
    for begins in (
        "limits: unknown key 'speed'",
        "limits: 4 jobs at once need as many workers, and there are 2",
        "limits: servers: no job uses 'nas'",
        "job 'two': unknown key 'compres': did you mean 'compress'?",
        "job 'two': Compression not supported for this file format",
        "job 'three': sparse_size: Invalid buffer size for sparse output",
        "job 'four': priority: expected a number, got a text",
        "job 'four': target: there is no {nme}, only {name} and {date}",
        "job 6: it has no name",
    ):
        assert [line for line in said if line.startswith(begins)], (begins, said)
    assert list(plan.place.iterdir()) == []
    tmp_path.joinpath("same.toml").write_text(
        "".join(f'[[job]]\nname = "{name}"\nsource = "/dev/null"\ntarget = "{tmp_path}/same"\n' for name in "ab")
    )
    done = mpconv("fanout", "--check", tmp_path / "same.toml")
    why = f"job 'a' has the same target, '{tmp_path}/same': give each its own, such as with {{name}}"
    assert done.stderr == f"mpconv: {tmp_path}/same.toml: job 'b': {why}\n"


def test_check_opens_the_sources(plan):
    plan.add("one", MiB)
    plan.parts.append(f'[[job]]\nname = "bad"\nsource = "{plan.nfs.url("nothing.raw")}"\n')
    plan.head()
    done = mpconv("fanout", "--check", plan.write())
    assert done.returncode == 1
    assert done.stderr.startswith(f"mpconv: {plan.path}: job 'bad': Could not open 'nfs://")
    plan.parts.pop()
    done = mpconv("fanout", "--check", plan.write())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{plan.path}: 1 job, 1 MiB: nothing is wrong\n"
    assert list(plan.place.iterdir()) == []


def test_check_looks_at_where_files_are_to_be_made(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    wrong = {
        "none/b.raw": f"there is no directory '{tmp_path}/none' for the target",
        ".": f"the target '{tmp_path}/.' is a directory",
    }
    for target, words in {**wrong, "b.raw": ""}.items():
        job = f'[[job]]\nname = "a"\nsource = "{tmp_path}/a.raw"\ntarget = "{tmp_path}/{target}"\n'
        (tmp_path / "plan.toml").write_text(job)
        done = mpconv("fanout", "--check", tmp_path / "plan.toml")
        assert (done.returncode, words in done.stderr, done.stderr == "") == (int(bool(words)), True, not words)
    assert not (tmp_path / "b.raw").exists()


def test_workers_of_other_hosts_wait_for_a_job_and_leave_alone_what_they_cannot_reach(plan, hosts, keys, tmp_path):
    """No process of this host copies at first. The target of one job is on a server that only this host reaches: it is
    done by a worker that comes up here later.
    """
    with IscsiServer(tmp_path / "near") as near:
        near.add_target(IQN)
        backing = tmp_path / "near.lun"
        backing.write_bytes(bytes(3 * MiB))
        target = near.url(IQN, near.add_lun(IQN, backing))
        plan.add("near", 3 * MiB, f'target = "{target}"\nno_create = true\nretry_for = 0')
        plan.add("far", 8 * MiB, 'oob_writes = true\nrate_limit = "8M"')
        plan.head("jobs = 2\nworkers = 1")
        endpoint = f"tcp://{CONTROL}:{free_port()}"
        words = [sys.executable, "-m", "mpconv", "worker", "--connect", endpoint, "--key-file", str(keys), "--workers"]
        away = hosts()
        helps = away.run(*words, "3", log=tmp_path / "away.log")
        fanout = plan.start(
            "--listen",
            endpoint,
            "--key-file",
            keys,
            "--fence",
            "1",
            "--json",
            "--workers",
            "0",
            "--journal",
            plan.journal,
        )
        until(lambda: written(plan.image("far")) > 4 * MiB)
        here = subprocess.Popen([*words, "1"], stderr=subprocess.PIPE, text=True)
        found, said = ended(fanout)
        assert (here.wait(20), helps.wait(20)) == (0, 0)
        assert found["written"] == 2
        assert any("near: worker" in line and "cannot take part" in line for line in said), said
        assert (tmp_path / "away.log").read_text().count("refuse") == 0
        plan.check("near")
        assert identical(plan.luns["near"], backing)


def test_a_host_may_give_more_workers_than_may_work(plan, hosts, keys, tmp_path):
    """Each host has two at most; the third waits, is not refused, and is sent home in the end."""
    plan.add("one", 6 * MiB, "oob_writes = true")
    plan.head('jobs = 1\nworkers = 2\nrate = "6M"')
    endpoint = f"tcp://{CONTROL}:{free_port()}"
    at = hosts()
    log = tmp_path / "worker.log"
    words = [sys.executable, "-m", "mpconv", "worker", "--connect", endpoint, "--key-file", str(keys)]
    worker = at.run(*words, "--workers", "3", log=log)
    fanout = plan.start("--listen", endpoint, "--key-file", keys, "--fence", "0.5", "--json")
    until(lambda: len(at.processes("copy-worker")) == 3)
    found, said = ended(fanout)
    assert worker.wait(20) == 0
    assert found["written"] == 1 and log.read_text() == "" and not any("silent" in line for line in said)
    plan.check()


def test_the_last_job_gets_the_processes_of_those_that_have_ended(plan, tmp_path):
    """And all of them together keep to the limit of their server."""
    plan.add("small", 2 * MiB, "oob_writes = true\nworkers = 3")
    plan.add("large", 18 * MiB, "oob_writes = true\nworkers = 3")
    plan.head(f'jobs = 2\nworkers = 4\n[limits.servers]\n"{STORAGE}" = "12M"')
    began = time.monotonic()
    fanout = plan.start("--json")
    until(lambda: workers_of(fanout.pid) == 3 and written(plan.image("small")) >= MiB, 20)
    found, _ = ended(fanout)
    assert time.monotonic() - began > 2 * sum(job["size"] - job["zero"] for job in found["jobs"]) / (12 * MiB) - 0.5
    assert found["written"] == 2
    plan.check()


def workers_of(pid: int) -> int:
    """How many processes copy for the command, which forks them by another one."""
    parents = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return sum(len(Path(f"/proc/{one}/task/{one}/children").read_text().split()) for one in parents)


def written(path: Path) -> int:
    """Bytes that a sparse file has."""
    return path.stat().st_blocks * 512 if path.exists() else 0


@pytest.mark.parametrize("journal", [False, True], ids=["", "journal"])
def test_what_a_worker_finds_that_will_not_pass_is_tried_once(tmp_path, journal):
    """A cluster that cannot be decompressed and a full disk, which only workers meet; the others are written."""
    small, plain, packed = tmp_path / "small", tmp_path / "plain.raw", tmp_path / "packed.qcow2"
    small.mkdir()
    plain.write_bytes(os.urandom(1024) * 6144)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", plain, packed], check=True)
    image = bytearray(packed.read_bytes())
    [first_table] = struct.unpack_from(">Q", image, 40)
    table = struct.unpack_from(">Q", image, first_table)[0] & (1 << 56) - 1
    at = struct.unpack_from(">Q", image, table)[0] & (1 << 54) - 1
    image[at : at + 64] = b"\xff" * 64  # a kind of block that deflate has not
    packed.write_bytes(image)
    jobs = {"full": (plain, small / "full"), "corrupt": (packed, tmp_path / "copy"), "good": (plain, tmp_path / "good")}
    plan = tmp_path / "plan.toml"
    tables = [
        f'[[job]]\nname = "{name}"\nsource = "{of}"\ntarget = "{to}"\nsource_format = "{of.suffix[1:]}"\n'
        for name, (of, to) in jobs.items()
    ]
    plan.write_text("[defaults]\nretries = 3\nretry_delay = 0\n" + "".join(tables))
    kept = ["--journal", tmp_path / "journal"] if journal else []
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], check=True)
    try:
        ran = mpconv("fanout", "--json", *kept, plan)
    finally:
        subprocess.run(["umount", small], check=True)
    found = json.loads(ran.stdout)
    assert ran.returncode == 2, ran.stderr
    assert {job["job"]: (job["result"], job["attempts"]) for job in found["jobs"]} == {
        "full": ("failed", 1),
        "corrupt": ("failed", 1),
        "good": ("written", 1),
    }
    assert "No space left on device" in result_of(found, "full")["why"]
    assert "packed.qcow2" in result_of(found, "corrupt")["why"]
    assert "trying again" not in ran.stderr and "Traceback" not in ran.stderr
