"""`mpconv deploy` against real servers: every target that is written is the source's equal, the others are named."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mpconv.journal.file import peek
from mpconv.journal.records import State
from mpconv.model.errors import Fatal
from tests.conftest import identical, mpconv
from tests.e2e.test_faults import Running
from tests.support.digests import guest_digest
from tests.support.relay import Changes, Relay, iscsi_length, relay

MiB = 1 << 20
SIZE, DATA = 48 * MiB, 24 * MiB


def fill(path: Path) -> Path:
    """A template: data, a hole, zeros that are written, data."""
    with path.open("wb") as file:
        file.write(os.urandom(DATA // 2) + bytes(MiB))
        file.seek(SIZE - DATA // 2)
        file.write(os.urandom(DATA // 2))
    return path


@pytest.fixture
def template(nfs, tmp_path) -> Iterator[Path]:
    """On the NFS server, which remembers files by their names."""
    path = fill(nfs.path(f"{tmp_path.name}.raw"))
    yield path
    path.unlink()


@pytest.fixture
def through() -> Iterator[Callable[..., tuple[str, Relay]]]:
    """A URL that leads through a relay, and that: of nfsd or the target."""
    with ExitStack() as stack:

        def led(url: str, changes: Changes | None = None) -> tuple[str, Relay]:
            port = re.findall(r"(?:nfsport=|127\.0\.0\.1:)(\d+)", url)[-1]
            made = stack.enter_context(relay("127.0.0.1", int(port), changes))
            return url.replace(port, str(made.port)), made

        yield led


def outcomes(shown: str | bytes) -> dict[str, str]:
    """What programs are told, in the last object: target -> outcome."""
    facts = json.loads(shown)
    assert facts["size"] == SIZE
    assert all((one["why"] is None) == (one["outcome"] == "written") for one in facts["targets"])
    return {one["target"]: one["outcome"] for one in facts["targets"]}


def last_line(copy: Running) -> str:
    return copy.shown.decode().splitlines()[-1]


@pytest.mark.parametrize("options", [("-W",), ("-W", "--workers", 2, "-r", "200M"), (), ("--workers", 2, "-S", "0")])
def test_all_targets_are_the_source_s_equals_and_it_is_read_once(nfs, lun, tmp_path, template, through, options):
    luns = [lun(SIZE, old_data=True) for _ in range(3)]
    source, relayed = through(nfs.url(template.name))
    file = tmp_path / "new.raw"
    ran = mpconv("deploy", *options, "--json", "--digest", source, *(one.url for one in luns), file)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert outcomes(ran.stdout) == {**{one.url: "written" for one in luns}, str(file): "written"}
    assert json.loads(ran.stdout)["digest"].startswith("xxh3-64k:")
    for one in luns:
        assert identical(template, one.backing)
    assert identical(template, file)
    assert DATA <= relayed.counts["bytes"] <= 1.02 * (DATA + MiB) + 64 * 1024


def test_a_qcow2_template(tmp_path, lun):
    raw = fill(tmp_path / "a.raw")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, tmp_path / "a.qcow2"], check=True)
    luns = [lun(SIZE + MiB, old_data=True), lun(SIZE, block_size=4096)]
    listed = tmp_path / "targets"
    listed.write_text(f"# the hosts\n{luns[0].url}\n\n  {luns[1].url}\n")
    ran = mpconv("deploy", "-W", "--verify", "--digest", "--targets", listed, tmp_path / "a.qcow2", tmp_path / "b.raw")
    assert (ran.returncode, ran.stderr) == (0, "")
    [digest, first], *more = [line.split("  ") for line in ran.stdout.splitlines()]
    assert [first, *(name for _, name in more)] == [str(tmp_path / "b.raw"), luns[0].url, luns[1].url]
    assert {digest} == {other for other, _ in more}
    assert identical(raw, tmp_path / "b.raw") and identical(raw, luns[1].backing)
    assert luns[0].backing.read_bytes()[:SIZE] == raw.read_bytes()


def test_targets_that_cannot_be_meant_are_refused_before_a_byte_is_written(tmp_path, lun):
    source = fill(tmp_path / "a.raw")
    good, small = lun(SIZE, old_data=True), lun(SIZE - 512, old_data=True)
    before = tmp_path / "before.raw"
    before.write_bytes(b"before")
    os.symlink(tmp_path / "new.raw", tmp_path / "link.raw")
    twice = "is named twice among the targets: name it once"
    for targets, words in {
        (small.url,): f"output file is smaller than input file ({SIZE - 512} of {SIZE} bytes) in '{small.url}'",
        (source,): f"source and target are the same image: '{source}'",
        (good.url,): f"'{good.url}' {twice}",
        (tmp_path / "new.raw", tmp_path / "link.raw"): f"'{tmp_path / 'link.raw'}' {twice}",
        ("null:", "--verify"): "--verify: 'null:' keeps nothing that could be read back: leave out --verify",
        ("--journal", tmp_path / "j", "-t", "unsafe"): "--journal cannot be used with -t unsafe: nothing would ever be "
        "durable",
        ("-O", "qcow2"): "mpconv deploy writes raw targets only, not qcow2: mpconv convert writes qcow2, one at a time",
    }.items():
        ran = mpconv("deploy", source, good.url, before, *targets)
        assert (ran.returncode, ran.stderr) == (1, f"mpconv: {words}\n")
    assert good.backing.read_bytes() == small.backing.read_bytes() + b"\xa5" * 512 == b"\xa5" * SIZE
    assert before.read_bytes() == b"before"
    assert not (tmp_path / "new.raw").exists()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "none", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.parametrize("options", [("-W", "--workers", 2), ()])
def test_a_target_that_is_full_is_dropped_and_the_others_are_written(tmp_path, lun, small_disk, options):
    source, one = fill(tmp_path / "a.raw"), lun(SIZE, old_data=True)
    full, absent, good = small_disk / "full.raw", tmp_path / "no" / "where.raw", tmp_path / "b.raw"
    ran = mpconv("deploy", *options, "--json", source, full, one.url, absent, good)
    assert ran.returncode == 2
    assert outcomes(ran.stdout) == {
        str(full): "failed",
        one.url: "written",
        str(absent): "failed",
        str(good): "written",
    }
    first, second, last = ran.stderr.splitlines()
    assert first.startswith(f"mpconv: warning: '{absent}' is dropped: ") and "No such file" in first
    assert re.match(rf"mpconv: warning: '{full}' is dropped: error while writing at byte \d+ of '{full}'", second)
    assert "No space left on device" in second
    assert last == "mpconv: 2 of 4 targets are written"
    assert identical(source, good) and identical(source, one.backing)


def test_when_all_fail_nothing_is_said_to_be_written(tmp_path, small_disk):
    source = fill(tmp_path / "a.raw")
    ran = mpconv("deploy", "--json", source, small_disk / "b.raw", small_disk / "c.raw")
    assert ran.returncode == 1
    assert set(outcomes(ran.stdout).values()) == {"failed"}
    *warnings, last = ran.stderr.splitlines()
    assert len(warnings) == 2 and last == "mpconv: 0 of 2 targets are written"


@pytest.mark.parametrize("options", [("-W", "--workers", 2), ("--workers", 2)])
def test_a_target_whose_server_goes_away_is_dropped(nfs, lun, tmp_path, template, through, options):
    gone, stays = lun(SIZE, old_data=True), lun(SIZE, old_data=True)
    source, reading = through(nfs.url(template.name))
    leading, writing = through(gone.url)
    copy = Running(*options, "-r", "48M", "--drop-after", "0.5", source, leading, stays.url, command="deploy")
    reading.wait_for("bytes", 6 * MiB)
    writing.refuse()
    code, words = copy.end(seconds=20)
    assert code == 2, words
    assert outcomes(last_line(copy)) == {leading: "failed", stays.url: "written"}
    assert f"mpconv: warning: '{leading}' is dropped: " in words
    assert words.endswith("mpconv: 1 of 2 targets are written\n")
    assert identical(template, stays.backing)


def test_a_target_that_comes_back_is_written_again(nfs, lun, template, through):
    lost, stays = lun(SIZE, old_data=True), lun(SIZE, old_data=True)
    source, reading = through(nfs.url(template.name))
    leading, writing = through(lost.url)
    copy = Running("-W", "--workers", 2, "-r", "48M", source, leading, stays.url, command="deploy")
    reading.wait_for("bytes", 6 * MiB)
    writing.refuse()
    reading.wait_for("ended", 1)
    writing.accept()
    code, words = copy.end(seconds=20)
    assert code == 0, words
    assert identical(template, lost.backing) and identical(template, stays.backing)


@pytest.mark.parametrize("order", [("-W",), ()])
def test_a_worker_that_is_killed_spoils_no_target(lun, tmp_path, order):
    source = fill(tmp_path / "a.raw")
    luns = [lun(SIZE, old_data=True) for _ in range(2)]
    copy = Running(*order, "--workers", 2, "-r", "48M", source, *(one.url for one in luns), command="deploy")
    copy.until_it_moves()
    os.kill(copy.workers()[0], signal.SIGKILL)
    code, words = copy.end(seconds=20)
    assert code == 0, words
    for one in luns:
        assert identical(source, one.backing)


def test_a_target_that_stores_something_else_is_found_out_and_no_other(lun, tmp_path, through):
    def spoil(message: bytearray) -> None:
        """Of each write."""
        if message[0] & 0x3F in (0x01, 0x05) and len(message) > 4096:
            message[-1] ^= 1

    source = fill(tmp_path / "a.raw")
    leading, _ = through(lun(SIZE, old_data=True).url, Changes(iscsi_length, request=spoil))
    good = lun(SIZE, old_data=True)
    ran = mpconv("deploy", "-W", "--verify", "--json", source, leading, good.url)
    assert ran.returncode == 2
    assert outcomes(ran.stdout) == {leading: "failed", good.url: "written"}
    assert [one["verified"] for one in json.loads(ran.stdout)["targets"]] == [0, SIZE]
    assert f"'{leading}' is dropped: the target is not equal to the source: bytes 0 to" in ran.stderr


@pytest.mark.parametrize("options", [("-W", "--workers", 2), ()])
def test_a_deployment_that_is_killed_goes_on_and_what_failed_stays_failed(lun, tmp_path, small_disk, options):
    source, journal = fill(tmp_path / "a.raw"), tmp_path / "j.db"
    full, good = small_disk / "full.raw", tmp_path / "b.raw"
    (small_disk / "more.raw").write_bytes(bytes(10 * MiB))
    one, other = lun(SIZE, old_data=True), tmp_path / "c.raw"
    targets = [full, one.url, good, tmp_path / "no" / "where.raw", other]
    words = [*options, "-r", "12M", "--digest", "--journal", journal, source, *targets]
    copy = Running(*words, command="deploy")
    dropped = False
    while not dropped:
        assert json.loads(copy.process.stdout.readline())["phase"] in ("open", "copy")
        with contextlib.suppress(Fatal, AttributeError):  # it is being made
            stored = peek(str(journal))[0]
            dropped = any(one.kind == "target 1 dropped" for one in stored.happened)
    os.killpg(copy.process.pid, signal.SIGKILL)
    copy.process.communicate()
    assert stored.state is State.RUNNING and stored.bytes_done >= 4 * MiB
    other.unlink()
    other.write_bytes(bytes(SIZE))  # another file under its name
    ran = mpconv("resume", "-r", 0, "--progress=json", journal)
    assert ran.returncode == 2, ran.stderr
    *lines, last = ran.stdout.splitlines()
    states = ["failed", "written", "written", "failed", "failed"]
    assert outcomes(last) == dict(zip(map(str, targets), states, strict=True))
    assert json.loads(lines[1])["done"] >= stored.bytes_done
    assert json.loads(last)["digest"] == guest_digest(source.read_bytes())
    assert "No space left" in json.loads(last)["targets"][0]["why"]
    assert identical(source, good) and identical(source, one.backing)
    again = mpconv("resume", journal)
    assert (again.returncode, again.stderr) == (2, "mpconv: 2 of 5 targets are written\n")
    assert again.stdout == f"The copy that the journal '{journal}' tells of is finished.\n"


def test_a_source_that_fails_leaves_every_target_incomplete(nfs, lun, tmp_path, template, through):
    source, reading = through(nfs.url(template.name))
    one = lun(SIZE)
    copy = Running("-r", "48M", "--retry-for", "0", source, one.url, tmp_path / "b.raw", command="deploy")
    reading.wait_for("bytes", 6 * MiB)
    reading.refuse()
    code, words = copy.end(seconds=20)
    assert code == 1
    assert set(outcomes(last_line(copy)).values()) == {"failed"}
    assert "error while reading at byte" in words and "the targets are incomplete" in words
