"""What a run made and did not complete is gone when the run ends, unless a journal can go on with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpconv.transports.base import Access
from mpconv.transports.nfs.session import Session
from tests.conftest import identical, mpconv
from tests.e2e.test_faults import Running, one_line
from tests.support.servers import NfsServer

MiB = 1 << 20
REMOVED = "incomplete, so it was removed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a.raw").write_bytes(os.urandom(8 * MiB))
    return tmp_path / "a.raw"


def fill_up(disk: Path) -> Path:
    """Not a byte is left."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for step in (64 << 10, 1):
            try:
                while file.write(bytes(step)):
                    pass
            except OSError:
                pass
    return path


KINDS = [
    (),
    ("-W",),
    ("-S", "0"),
    ("-O", "qcow2"),
    ("-O", "qcow2", "-c", "-W"),
    ("-O", "qcow2", "-o", "data_file=d.raw"),
    ("-O", "qcow2", "-o", "preallocation=metadata"),
    ("-O", "qcow2", "-o", "preallocation=falloc"),
    ("-o", "preallocation=falloc"),
    ("-o", "preallocation=full"),
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("room", ["some", "none"])
def test_a_full_disk_has_nothing_under_the_target_s_name(small_disk, source, options, room):
    there = {fill_up(small_disk)} if room == "none" else set()
    done = mpconv("convert", "-f", "raw", *options, source, small_disk / "b.img", cwd=small_disk)
    assert done.returncode == 1
    one_line(done.stderr, "No space left on device")
    assert set(small_disk.iterdir()) == there


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("room", ["some", "none"])
def test_a_file_that_was_there_stays_and_is_said_to_be_incomplete(small_disk, source, options, room):
    (small_disk / "b.img").write_bytes(b"\xa5" * 4096)
    inode = (small_disk / "b.img").stat().st_ino
    if room == "none":
        fill_up(small_disk)
    done = mpconv("convert", "-f", "raw", *options, source, small_disk / "b.img", cwd=small_disk)
    assert done.returncode == 1
    one_line(done.stderr, "No space left on device", "the target is incomplete")
    assert "removed" not in done.stderr or "d.raw" in done.stderr
    assert (small_disk / "b.img").stat().st_ino == inode


def test_what_is_too_large_for_the_file_system_empties_no_file(tmp_path):
    where = tmp_path / "ext"
    where.mkdir()
    with (tmp_path / "ext.img").open("wb") as file:
        file.truncate(16 * MiB)
    subprocess.run(["mkfs.ext4", "-q", str(tmp_path / "ext.img")], check=True)
    subprocess.run(["mount", "-o", "loop", str(tmp_path / "ext.img"), str(where)], check=True)
    try:
        (where / "b.raw").write_bytes(b"\xa5" * 4096)
        for name in ("b.raw", "new.raw"):
            done = mpconv("convert", "null:?size=64T", where / name)
            assert done.returncode == 1
            one_line(done.stderr, "Could not create", "File too large")
        assert (where / "b.raw").read_bytes() == b"\xa5" * 4096
        assert not (where / "new.raw").exists()
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("options", [(), ("-O", "qcow2"), ("-O", "qcow2", "-c")])
def test_a_full_disk_behind_nfs(small_disk, source, options):
    with NfsServer(small_disk.parent / "full-nfs", small_disk / "export") as server:
        done = mpconv("convert", "-f", "raw", *options, source, server.url("b.img"))
        assert done.returncode == 1
        one_line(done.stderr, "No space left on device", REMOVED)
        assert not server.path("b.img").exists()
        server.path("b.img").write_bytes(b"\xa5" * 4096)
        done = mpconv("convert", "-f", "raw", *options, source, server.url("b.img"))
        assert done.returncode == 1
        one_line(done.stderr, "No space left on device", "the target is incomplete: ")
        assert server.path("b.img").stat().st_size


def test_a_link_stays_and_what_was_made_behind_it_goes(small_disk, source):
    link = small_disk / "link"
    link.symlink_to("behind.raw")
    done = mpconv("convert", "-f", "raw", source, link)
    assert done.returncode == 1
    one_line(done.stderr, REMOVED)
    assert list(small_disk.iterdir()) == [link]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("-O", "qcow2")])
def test_a_signal_leaves_nothing_but_with_a_journal_all(tmp_path, source, number, options):
    copy = Running("-f", "raw", *options, "-r", "2M", source, tmp_path / "b.img")
    copy.until_it_moves()
    copy.process.send_signal(number)
    code, words = copy.end()
    assert code == 128 + number
    one_line(words, REMOVED, "run the command again")
    assert not (tmp_path / "b.img").exists()
    copy = Running("-f", "raw", *options, "-r", "2M", "--journal", tmp_path / "j", source, tmp_path / "b.img")
    copy.until_it_moves()
    copy.process.send_signal(number)
    code, words = copy.end()
    assert code == 128 + number
    one_line(words, "the target is incomplete: ", "resume with: mpconv resume")
    assert mpconv("resume", "-r", "0", tmp_path / "j").returncode == 0
    compared = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2" if options else "raw", source, tmp_path / "b.img"]
    assert subprocess.run(compared, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("options", [("-W",), ("--journal", "j.db")])
def test_a_deployment_removes_what_it_could_not_complete(small_disk, source, tmp_path, options):
    old = tmp_path / "old.raw"
    old.write_bytes(b"\xa5" * 4096)
    targets = [small_disk / "b.raw", tmp_path / "c.raw", old]
    done = mpconv("deploy", *options, "-f", "raw", "--json", source, *targets, cwd=tmp_path)
    assert done.returncode == 2
    assert not targets[0].exists()
    assert identical(source, targets[1]) and identical(source, old)
    assert REMOVED in json.loads(done.stdout)["targets"][0]["why"]


def test_a_deployment_whose_source_fails_removes_all_that_it_made(tmp_path):
    with NfsServer(tmp_path / "nfs") as server:
        with server.path("a.raw").open("wb") as file:
            for _ in range(64):
                file.write(os.urandom(MiB))
        old = tmp_path / "old.raw"
        old.write_bytes(b"\xa5" * 4096)
        words = ["-f", "raw", "-r", "8M", "--retry-for", "0", server.url("a.raw"), tmp_path / "b.raw", old]
        copy = Running(*words, command="deploy")
        copy.until_it_moves()
        server.kill()
        code, words = copy.end()
    assert code == 1
    assert "those that this run made were removed" in words
    assert not (tmp_path / "b.raw").exists() and old.exists()


@pytest.mark.parametrize("journal", [False, True])
def test_a_fan_out(small_disk, source, tmp_path, journal):
    plan = f"""
        [defaults]
        retries = 0
        [[job]]
        name = "full"
        source = "{source}"
        target = "{small_disk}/b.raw"
        [[job]]
        name = "good"
        source = "{source}"
        target = "c.raw"
    """
    (tmp_path / "plan.toml").write_text(plan)
    options = ("--journal", "j") if journal else ()
    done = mpconv("fanout", *options, "plan.toml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert identical(source, tmp_path / "c.raw")
    assert (small_disk / "b.raw").exists() == journal
    if journal:
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        done = mpconv("resume", "j", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert identical(source, small_disk / "b.raw")


@pytest.mark.parametrize("kind", ["hard link", "link"])
def test_a_source_under_another_name_stays(tmp_path, source, kind):
    other = tmp_path / "other"
    (other.hardlink_to if kind == "hard link" else other.symlink_to)(source)
    content = source.read_bytes()
    done = mpconv("convert", "-f", "raw", source, other)
    assert done.returncode == 1
    assert other.read_bytes() == source.read_bytes() == content


@pytest.mark.parametrize("moved", [False, True])
def test_what_somebody_put_there_meanwhile_stays(tmp_path, source, moved):
    """Under the name that the run made a file under, and has open."""
    target, theirs, elsewhere = tmp_path / "b.raw", tmp_path / "theirs", tmp_path / "moved"
    copy = Running("-f", "raw", "-r", "2M", source, target)
    copy.until_it_moves()
    theirs.write_bytes(b"their bytes")
    if moved:
        target.rename(elsewhere)
        target.symlink_to(elsewhere)
    else:
        theirs.replace(target)
    copy.process.send_signal(signal.SIGTERM)
    code, words = copy.end()
    assert code == 128 + signal.SIGTERM
    one_line(words, "the target is incomplete: ")
    if moved:
        assert target.is_symlink() and elsewhere.exists()
    else:
        assert target.read_bytes() == b"their bytes"


def test_what_another_client_put_there_meanwhile_stays(tmp_path, source):
    (tmp_path / "theirs").write_bytes(b"their bytes " * 512)
    with NfsServer(tmp_path / "nfs") as server:
        url = server.url("b.raw")
        copy = Running("-f", "raw", "-r", "2M", "--retry-for", "0", source, url)
        copy.until_it_moves()
        found = Session(url)
        for step in found.steps(Access.READ, None):
            step()
        inode, handle = found.inode, found.handle()
        found.close()
        assert Session(url).remove(inode, handle)
        assert mpconv("convert", "-f", "raw", tmp_path / "theirs", url).returncode == 0
        copy.process.send_signal(signal.SIGTERM)
        code, words = copy.end()
        assert code != 0
        one_line(words, "the target is incomplete: ")
        assert server.path("b.raw").read_bytes() == (tmp_path / "theirs").read_bytes()
