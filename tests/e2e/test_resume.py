"""Copies that are killed, stopped or fail, and go on: the same bytes, and not all of the work again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpconv.journal.file import Journal, peek
from mpconv.journal.records import Checkpoint, Happening, State
from mpconv.model.errors import Fatal
from tests.conftest import identical, make_image, mpconv
from tests.e2e.test_faults import one_line
from tests.support.servers import IscsiServer

MiB = 1 << 20
SIZE = 32 * MiB
DATA = 24 * MiB
"""Random bytes, so that nobody's copy of another cluster goes for the right one; behind them there are zeros."""


class Journaled:
    """A copy with a journal `j.db`, in a session of its own. `words`: of the command."""

    def __init__(self, directory: Path, *words: object, command: str = "convert") -> None:
        self.journal = directory / "j.db"
        where = ["--journal", self.journal] if command == "convert" else [self.journal]
        line = [sys.executable, "-m", "mpconv", command, "--progress=json", *map(str, [*where, *words])]
        self.process = subprocess.Popen(
            line, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
        )

    def until_durable(self, share: float = 0.25) -> int:
        """So much of it stands in the journal: bytes. Each report of its progress is a reason to look."""
        assert self.process.stdout is not None
        for _ in self.process.stdout:
            try:
                stored, _ = peek(str(self.journal))
            except Fatal:  # it is being made
                continue
            if stored is not None and stored.bytes_done >= share * SIZE:
                return stored.bytes_done
        raise AssertionError(f"it ended before: {self.process.stderr and self.process.stderr.read()}")

    def until_begun(self) -> None:
        """The journal is its own."""
        assert self.process.stdout is not None
        assert any(json.loads(line)["phase"] == "copy" for line in self.process.stdout)

    def kill(self) -> None:
        """All of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def resume(directory: Path, *words: object, **how: object) -> tuple[subprocess.CompletedProcess, int]:
    """Go on, as fast as it goes; and how many bytes were done when it began."""
    done = mpconv("resume", "-r", 0, "--progress=json", *words, directory / "j.db", **how)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    begun = [report["done"] for report in reports if report["phase"] != "open"]
    return done, begun[0] if begun else 0


def stored(directory: Path):
    found, used = peek(str(directory / "j.db"))
    assert found is not None and not used
    return found


@dataclass(frozen=True)
class Variant:
    """How the copy is made. `before`: what the target has in it already, None: there is none."""

    words: tuple[str, ...] = ()
    fmt: str = "raw"
    before: bytes | None = None


VARIANTS = {
    "raw": Variant(),
    "raw -W": Variant(("-W", "--workers", "2")),
    "raw -n over old data": Variant(("-n", "-W", "--workers", "2"), before=b"\xa5" * SIZE),
    "qcow2": Variant(("-O", "qcow2"), "qcow2"),
    "qcow2 in order, two workers": Variant(("-O", "qcow2", "--workers", "2"), "qcow2"),
    "qcow2 -c -W": Variant(("-O", "qcow2", "-c", "-W", "--workers", "2"), "qcow2"),
    "extended_l2": Variant(("-O", "qcow2", "-W", "-o", "extended_l2=on"), "qcow2"),
    "data_file": Variant(("-O", "qcow2", "-W", "-o", "data_file=b.data"), "qcow2"),
    "preallocation": Variant(("-O", "qcow2", "-W", "-o", "preallocation=metadata"), "qcow2"),
    "small clusters": Variant(("-O", "qcow2", "-W", "-o", "cluster_size=512,compat=0.10"), "qcow2"),
    "backing": Variant(("-O", "qcow2", "-W", "-B", "base.raw", "-F", "raw"), "qcow2"),
}


def make_source(directory: Path) -> Path:
    source = directory / "a.raw"
    with source.open("wb") as file:
        file.write(os.urandom(DATA))
        file.truncate(SIZE)
    return source


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """All of them, side by side: where each is, and how much of it was durable when it was killed."""
    source = make_source(tmp_path_factory.mktemp("source"))
    base = source.with_name("base.raw")
    base.write_bytes(os.urandom(SIZE))
    directories = {name: tmp_path_factory.mktemp("killed") for name in VARIANTS}
    for name, directory in directories.items():
        for path in (source, base):
            (directory / path.name).symlink_to(path)
        before = VARIANTS[name].before
        if before is not None:
            (directory / "b.img").write_bytes(before)

    def run(name: str) -> tuple[Path, int]:
        copy = Journaled(directories[name], "-r", "6M", *VARIANTS[name].words, "a.raw", "b.img")
        durable = copy.until_durable()
        copy.kill()
        return directories[name], durable

    with ThreadPoolExecutor(len(VARIANTS)) as threads:
        return dict(zip(VARIANTS, threads.map(run, VARIANTS), strict=True))


def cut_power(target: Path, durable: list[tuple[int, int]], before: bytes) -> None:
    """Some of what was written and not flushed is gone: the target is as it was there."""
    with target.open("r+b") as file:
        for (_, start), (end, _) in zip([(0, 0), *durable], [*durable, (SIZE, SIZE)], strict=True):
            middle = (start + end) // 2
            file.seek(middle)
            file.write(before[middle:end])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_copy_that_was_killed_goes_on(killed, name: str):
    directory, durable = killed[name]
    source, target, fmt = directory / "a.raw", directory / "b.img", VARIANTS[name].fmt
    assert stored(directory).state is State.RUNNING
    told = mpconv("status", directory / "j.db")
    assert told.returncode == 0 and "state: killed" in told.stdout and "go on with: mpconv resume" in told.stdout
    if fmt == "qcow2":
        assert subprocess.run(["qemu-img", "check", target], capture_output=True, check=False).returncode != 0
    elif name != "raw":
        cut_power(target, list(stored(directory).done), VARIANTS[name].before or bytes(SIZE))
    done, begun = resume(directory, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert durable <= begun < SIZE, "what was durable is not done again, and something was left to do"
    command = ["qemu-img", "compare", "-f", "raw", "-F", fmt, source, target]
    assert subprocess.run(command, cwd=directory, check=False).returncode == 0
    if fmt == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", target], cwd=directory, check=True)
    assert stored(directory).state is State.FINISHED
    assert (stored(directory).bytes_done, stored(directory).zeros) == (SIZE, SIZE - DATA)
    again = mpconv("resume", directory / "j.db")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.endswith("is finished.\n")


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """The journal of a raw copy, as if it had been killed when half of it was durable; all of it was written."""
    source = make_source(tmp_path)
    done = mpconv("convert", "--journal", tmp_path / "j.db", source, tmp_path / "b.img")
    assert (done.returncode, done.stderr) == (0, "")
    unfinish(tmp_path, SIZE // 2)
    return tmp_path


def unfinish(directory: Path, done: int) -> None:
    journal = Journal.of_copy(str(directory / "j.db"))
    journal.begin_anew(journal.load().begun.course)
    ranges = [(0, done)] if done else []
    journal.commit(Checkpoint(ranges=ranges, zeros=0, written=done, state=State.RUNNING))
    journal.close()


def test_what_was_lost_before_is_told_again(unfinished: Path):
    journal = Journal.of_copy(str(unfinished / "j.db"))
    lost = [Happening(0, "lost", "Input/output error", 4096, 1024)]
    journal.commit(Checkpoint(ranges=[], zeros=0, written=0, happened=lost))
    journal.close()
    done = mpconv("resume", unfinished / "j.db")
    assert done.returncode == 0
    assert "lost bytes 4096 to 5119 (1024): Input/output error\n" in done.stderr


def newer(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def another(path: Path) -> None:
    """The same bytes, in another file of the same name; many file systems give it the same inode."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda at: newer(at / "a.raw"), ("source '", "a.raw' is not the image it was: modified at ", "(it was ")),
        (
            lambda at: os.truncate(at / "a.raw", SIZE + 1),
            ("a.raw' is not the image it was: its size", f"it was {SIZE}"),
        ),
        (lambda at: another(at / "a.raw"), ("source '", "a.raw' is not the image it was: ")),
        (lambda at: (at / "a.raw").unlink(), ("a.raw': No such file or directory",)),
        (lambda at: another(at / "b.img"), ("target '", "b.img' is not the image it was: ", "(it was ")),
        (lambda at: os.truncate(at / "b.img", SIZE - MiB), ("output file is smaller than input file",)),
        (
            lambda at: (at / "b.img").unlink(),
            ("b.img': No such file or directory: what was copied is gone with it; begin anew",),
        ),
    ],
    ids=["modified", "longer", "source replaced", "source gone", "target replaced", "target cut off", "target gone"],
)
def test_other_images_are_refused_before_anything_is_written(unfinished: Path, change, words):
    change(unfinished)
    target = unfinished / "b.img"
    before = target.stat().st_mtime_ns if target.exists() else None
    done, _ = resume(unfinished)
    assert done.returncode == 1
    one_line(done.stderr, *words)
    assert (target.stat().st_mtime_ns if target.exists() else None) == before
    assert stored(unfinished).bytes_done == SIZE // 2


def test_every_file_of_a_chain_is_looked_at(tmp_path: Path):
    make_source(tmp_path)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", tmp_path / "over.qcow2"]
    subprocess.run(command, check=True)
    done = mpconv(
        "convert", "--allow-backing", "--journal", tmp_path / "j.db", tmp_path / "over.qcow2", tmp_path / "b.img"
    )
    assert (done.returncode, done.stderr) == (0, "")
    unfinish(tmp_path, MiB)
    done, begun = resume(tmp_path)
    assert (done.returncode, done.stderr, begun) == (0, "", MiB)
    assert identical(tmp_path / "a.raw", tmp_path / "b.img")
    unfinish(tmp_path, MiB)
    newer(tmp_path / "a.raw")
    done, _ = resume(tmp_path)
    assert done.returncode == 1
    one_line(done.stderr, "source '", "a.raw' is not the image it was: modified at ")


def test_what_is_done_already_is_not_read_again(unfinished: Path):
    """By the target's bytes, which another program has changed there."""
    with (unfinished / "b.img").open("r+b") as file:
        file.write(b"spoilt")
        file.seek(SIZE // 2)
        file.write(b"spoilt")
    done, _ = resume(unfinished)
    assert (done.returncode, done.stderr) == (0, "")
    with (unfinished / "b.img").open("rb") as file, (unfinished / "a.raw").open("rb") as source:
        assert file.read(6) == b"spoilt"
        file.seek(SIZE // 2)
        source.seek(SIZE // 2)
        assert file.read() == source.read()


def test_two_at_once(unfinished: Path):
    first = Journaled(unfinished, "-r", "1M", command="resume")
    first.until_begun()
    done, _ = resume(unfinished)
    assert done.returncode == 1
    one_line(done.stderr, f"j.db' is in use by another mpconv (pid {first.process.pid})")
    told = mpconv("status", "--output", "json", unfinished / "j.db")
    assert (told.returncode, told.stderr) == (0, "")
    facts = json.loads(told.stdout)
    assert (facts["state"], facts["pid"], facts["size"]) == ("running", first.process.pid, SIZE)
    assert SIZE // 2 <= facts["durable"] < SIZE
    refused = mpconv("convert", "--journal", unfinished / "j.db", unfinished / "a.raw", unfinished / "c.img")
    one_line(refused.stderr, "in use by another mpconv")
    assert not (unfinished / "c.img").exists()
    first.kill()


def test_an_unfinished_copy_s_journal_is_not_overwritten(unfinished: Path):
    words = ("--journal", unfinished / "j.db", unfinished / "a.raw", unfinished / "c.img")
    done = mpconv("convert", *words)
    assert done.returncode == 1
    one_line(done.stderr, "has an unfinished copy: go on with it: mpconv resume", "; or remove it")
    assert not (unfinished / "c.img").exists()
    assert resume(unfinished)[0].returncode == 0
    done = mpconv("convert", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(unfinished).begun.target == str(unfinished / "c.img")


@pytest.mark.parametrize("command", ["resume", "status"])
def test_a_file_that_is_no_journal(tmp_path: Path, command: str):
    (tmp_path / "text").write_text("hello\n" * 100)
    done = mpconv(command, tmp_path / "text")
    assert done.returncode == 1
    one_line(done.stderr, "text' is not a journal of mpconv")
    one_line(mpconv(command, tmp_path / "none").stderr, "none': No such file or directory")


def test_an_image_is_never_taken_for_the_journal(tmp_path: Path):
    source = tmp_path / "a.raw"
    make_image(source, MiB)
    before = source.read_bytes()
    for journal, words in ((source, "is one of the images"), (tmp_path / "b.img", "is one of the images")):
        done = mpconv("convert", "--journal", journal, source, tmp_path / "b.img")
        assert done.returncode == 1
        one_line(done.stderr, words)
    assert source.read_bytes() == before and not (tmp_path / "b.img").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-t", "unsafe"), "--journal cannot be used with -t unsafe"),
        (("-n", "-O", "qcow2"), "--journal cannot be used with -n and a qcow2 image yet"),
    ],
)
def test_what_cannot_have_a_journal(tmp_path: Path, options: tuple[str, ...], words: str):
    make_image(tmp_path / "a.raw", MiB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "b.img", "1M"], check=True)
    before = (tmp_path / "b.img").read_bytes()
    done = mpconv("convert", *options, "--journal", tmp_path / "j.db", tmp_path / "a.raw", tmp_path / "b.img")
    assert done.returncode == 1
    one_line(done.stderr, words)
    assert (tmp_path / "b.img").read_bytes() == before
    assert not (tmp_path / "j.db").exists()


@pytest.mark.parametrize(("fmt", "number"), [("raw", signal.SIGINT), ("qcow2", signal.SIGTERM)])
def test_a_copy_that_is_stopped_says_how_it_goes_on(tmp_path: Path, fmt: str, number: int):
    make_source(tmp_path)
    copy = Journaled(tmp_path, "-O", fmt, "-r", "10M", "a.raw", "b.img")
    assert copy.process.stdout is not None
    for line in copy.process.stdout:
        if json.loads(line)["done"] >= 6 * MiB:
            break
    copy.process.send_signal(number)
    _, words = copy.process.communicate(timeout=20)
    assert copy.process.returncode == 128 + number
    assert words.splitlines()[-1].endswith(f"resume with: mpconv resume {tmp_path / 'j.db'})")
    found = stored(tmp_path)
    assert found.state is State.STOPPED
    assert found.bytes_done == found.written >= 6 * MiB, "all that was written was flushed and is in the journal"
    done, begun = resume(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert begun == found.bytes_done
    command = ["qemu-img", "compare", "-f", "raw", "-F", fmt, tmp_path / "a.raw", tmp_path / "b.img"]
    assert subprocess.run(command, check=False).returncode == 0
    if fmt == "qcow2":
        fresh = mpconv("convert", "-O", "qcow2", tmp_path / "a.raw", tmp_path / "fresh.img")
        assert fresh.returncode == 0
        assert (tmp_path / "b.img").stat().st_size == (tmp_path / "fresh.img").stat().st_size, "it has a gap"


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "extended_l2=on,data_file=b.data")])
def test_a_crash_while_the_tables_are_written(tmp_path: Path, options: tuple[str, ...]):
    """The last step is the header: before it, it is as it was when the copy began; behind it all is done."""
    make_source(tmp_path)
    fresh = mpconv(
        "convert", "--journal", tmp_path / "j.db", "-O", "qcow2", *options, tmp_path / "a.raw", tmp_path / "b.img"
    )
    assert (fresh.returncode, fresh.stderr) == (0, "")
    target = tmp_path / "b.img"
    whole = target.read_bytes()

    def crashed() -> None:
        journal = Journal.of_copy(str(tmp_path / "j.db"))
        journal.commit(Checkpoint(ranges=[], zeros=SIZE - DATA, written=SIZE, state=State.RUNNING))
        journal.close()

    crashed()
    before = target.stat().st_mtime_ns
    assert resume(tmp_path)[0].returncode == 0
    assert target.stat().st_mtime_ns == before, "nothing was left to do"
    without = bytearray(whole)
    without[36:60] = bytes(24)  # L1 table and refcount table
    without[79] |= 1  # dirty
    end = len(whole) - MiB // 8
    without[end:] = os.urandom(len(whole) - end)  # tables, in part
    target.write_bytes(without)
    crashed()
    done, begun = resume(tmp_path)
    assert (done.returncode, done.stderr, begun) == (0, "", SIZE)
    assert target.read_bytes() == whole
    with target.open("r+b") as file:
        file.write(b"QFI\xff")
    crashed()
    one_line(resume(tmp_path)[0].stderr, "b.img': it is not the image that was begun")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "none", where], check=True)
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_a_target_s_disk_that_is_full(small_disk: Path, tmp_path: Path):
    """By a raw image and a qcow2 image at the same time."""
    source = make_source(tmp_path)
    copies = {}
    for name, words in {"raw": ("-W",), "qcow2": ("-O", "qcow2")}.items():
        (tmp_path / name).mkdir()
        copies[name] = Journaled(tmp_path / name, "-r", "2M", *words, source, small_disk / name)
    durable = {}
    for name, copy in copies.items():
        _, told = copy.process.communicate(timeout=30)
        assert copy.process.returncode == 1
        one_line(told, "error while writing at byte", "No space left on device", "resume with: mpconv resume")
        durable[name] = stored(tmp_path / name).bytes_done
        assert durable[name] >= 2 * MiB and stored(tmp_path / name).state is State.FAILED
    again, _ = resume(tmp_path / "raw")
    assert again.returncode == 1
    one_line(again.stderr, "No space left on device", "resume with: mpconv resume")
    subprocess.run(["mount", "-o", "remount,size=120m", small_disk], check=True)
    for name in copies:
        done, begun = resume(tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
        assert begun >= durable[name]
        command = ["qemu-img", "compare", "-f", "raw", "-F", name, source, small_disk / name]
        assert subprocess.run(command, check=False).returncode == 0


def test_a_journal_s_disk_that_is_full(small_disk: Path, tmp_path: Path):
    """The copy fails: without a journal it could not go on, and that is what the user counts on."""
    make_source(tmp_path)
    journal = small_disk / "j.db"
    copy = Journaled(small_disk, "-r", "10M", tmp_path / "a.raw", tmp_path / "b.img")
    assert copy.process.stdout is not None
    for line in copy.process.stdout:
        if json.loads(line)["done"]:
            break
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    _, told = copy.process.communicate(timeout=30)
    assert copy.process.returncode == 1
    one_line(
        told, f"error while writing the journal '{journal}': database or disk is full", "resume with: mpconv resume"
    )
    (small_disk / "ballast").unlink()
    done, _ = resume(small_disk)
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(tmp_path / "a.raw", tmp_path / "b.img")


def test_over_nfs_and_iscsi(nfs, lun, tmp_path: Path):
    """From NFS to a LUN full of old data, and from the same file, at the same time, to a qcow2 image over NFS."""
    source = make_source(tmp_path)
    target = lun(SIZE, old_data=True)
    nfs.path("a.raw").write_bytes(source.read_bytes())
    to_lun, to_nfs = tmp_path / "to-lun", tmp_path / "to-nfs"
    copies = []
    for directory, words in ((to_lun, ("-W", target.url)), (to_nfs, ("-O", "qcow2", nfs.url("b.qcow2")))):
        directory.mkdir()
        copies.append(Journaled(directory, "--workers", 2, "-r", "6M", nfs.url("a.raw"), *words))
    durable = copies[0].until_durable()
    copies[1].until_durable(0.01)
    for copy in copies:
        copy.kill()
    for directory in (to_lun, to_nfs):
        done, begun = resume(directory)
        assert (done.returncode, done.stderr) == (0, "")
        assert begun >= (durable if directory is to_lun else 1)
    assert identical(source, target.backing)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", nfs.path("b.qcow2")], check=True)
    command = ["qemu-img", "compare", "-f", "raw", source, "-F", "qcow2", nfs.path("b.qcow2")]
    assert subprocess.run(command, check=False).returncode == 0
    [found] = (one.same for one in stored(to_lun).begun.identities if one.role == "target")
    assert found["its serial number"] and found["its designators"]
    unfinish(to_lun, MiB)
    make_image(tmp_path / "other.raw", MiB)
    assert mpconv("convert", "-n", tmp_path / "other.raw", nfs.url("a.raw")).returncode == 0
    changed, _ = resume(to_lun)
    assert changed.returncode == 1
    one_line(changed.stderr, "source 'nfs://", "is not the image it was: modified at")


def test_a_password_is_never_kept(iscsi: IscsiServer, tmp_path: Path):
    iqn = iscsi.add_target("iqn.2026-11.org.mpconv:journal", chap=("anna", "secretword123"))
    make_image(tmp_path / "a.raw", MiB)
    with (tmp_path / "lun.img").open("wb") as file:
        file.truncate(MiB)
    number = iscsi.add_lun(iqn, tmp_path / "lun.img")
    url = iscsi.url(iqn, number).replace("//", "//anna%secretword123@")
    done = mpconv("convert", "--journal", tmp_path / "j.db", tmp_path / "a.raw", url)
    assert (done.returncode, done.stderr) == (0, "")
    unfinish(tmp_path, 0)
    assert b"secretword123" not in (tmp_path / "j.db").read_bytes()
    done, _ = resume(tmp_path)
    assert done.returncode == 1
    one_line(done.stderr, "no journal keeps a password: set LIBISCSI_CHAP_PASSWORD for 'iscsi://anna@")
    done, _ = resume(tmp_path, env={"LIBISCSI_CHAP_PASSWORD": "secretword123"})
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(tmp_path / "a.raw", tmp_path / "lun.img")
