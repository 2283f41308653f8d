"""`mpconv checksum` and `mpconv convert --digest`, against the definition."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import make_image, mpconv
from tests.e2e.test_faults import Running, warned
from tests.support.allocation import allocation
from tests.support.digests import block_digest, digest_of, guest_digest, summed_up

KiB, MiB, TiB = 1 << 10, 1 << 20, 1 << 40


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def checksums(*arguments: object) -> list[str]:
    """The digests, in order; the rest of each line is the image's name."""
    ran = mpconv("checksum", *arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = [line.split("  ") for line in ran.stdout.splitlines()]
    names = [str(word) for word in arguments if not str(word).startswith("-")]
    assert [name for _, name in lines] == names[-len(lines) :]
    return [digest for digest, _ in lines]


@pytest.mark.parametrize("size", [0, 1, 700, 64 * KiB, 64 * KiB + 512, 5 * MiB + 512, 9 * MiB + 33])
def test_raw_and_qcow2_have_one_digest(tmp_path, size):
    raw = tmp_path / "a.raw"
    make_image(raw, size, seed=size)
    images = [raw]
    for name, options in {"a.qcow2": (), "small.qcow2": ("-o", "cluster_size=512"), "packed.qcow2": ("-c",)}.items():
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, tmp_path / name)
        images.append(tmp_path / name)
    assert checksums(*images) == [guest_digest(raw.read_bytes())] * len(images)


@pytest.mark.parametrize("options", [("--workers=1",), ("--workers=2", "-m", "3"), ("--workers=4",)])
def test_the_number_of_workers_makes_no_difference(tmp_path, options):
    make_image(tmp_path / "a.raw", 33 * MiB + 512)
    assert checksums(*options, tmp_path / "a.raw") == [digest_of((tmp_path / "a.raw").read_bytes())]


def test_known_zeros_are_not_read(tmp_path):
    """60 terabytes of them."""
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=2M", tmp_path / "a.qcow2", "60T")
    subprocess.run(["qemu-io", "-c", "write -P 7 59T 64k", str(tmp_path / "a.qcow2")], check=True, capture_output=True)
    counted = block_digest((59 * TiB) // (64 * KiB), b"\x07" * (64 * KiB))
    assert checksums(tmp_path / "a.qcow2") == [summed_up(60 * TiB, counted)]


def test_over_nfs_and_iscsi(nfs, lun):
    make_image(nfs.path("digested.raw"), 20 * MiB)
    target = lun(20 * MiB, old_data=True)
    ran = mpconv("convert", "--digest", nfs.url("digested.raw"), target.url)
    expected = digest_of(nfs.path("digested.raw").read_bytes())
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{expected}  {target.url}\n", "")
    assert checksums(nfs.url("digested.raw"), target.url) == [expected] * 2


@pytest.mark.parametrize(("order", "workers"), [((), 1), ((), 3), (("-W",), 2)])
@pytest.mark.parametrize(
    "made", [("-O", "raw"), ("-O", "qcow2"), ("-O", "qcow2", "-o", "cluster_size=512", "-c"), ("-S", "0")]
)
def test_a_copy_tells_the_digest_of_what_it_read(tmp_path, order, workers, made):
    source, target = tmp_path / "a.raw", tmp_path / "target"
    make_image(source, 5 * MiB + 33)
    ran = mpconv("convert", "--digest", "--workers", workers, *order, *made, source, target)
    expected = guest_digest(source.read_bytes())
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{expected}  {target}\n", "")
    assert checksums(target) == [expected]


@pytest.mark.parametrize("cluster", ["512", "4k", "64k", "2M"])
def test_leases_of_a_compressed_copy_end_where_blocks_do(tmp_path, cluster):
    """A 32nd of 65 MiB is no whole number of blocks."""
    original, copied = tmp_path / "a.raw", tmp_path / "b.qcow2"
    content = (os.urandom(300) * (65 * MiB // 300 + 1))[: 65 * MiB]
    original.write_bytes(content)
    how = ("-c", "-W", "--digest", "--verify", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}")
    ran = mpconv("convert", *how, original, copied)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split()[0] == guest_digest(content)


def test_several_sources_have_the_digest_of_the_whole(tmp_path):
    for name, size in (("a", 3 * MiB + 100), ("b", 700), ("c", 2 * MiB)):
        make_image(tmp_path / name, size, seed=size)
    names = [tmp_path / name for name in "abc"]
    ran = mpconv("convert", "--digest", *names, tmp_path / "t")
    whole = b"".join(path.read_bytes() + bytes(-path.stat().st_size % 512) for path in names)
    assert ran.stdout == f"{digest_of(whole)}  {tmp_path / 't'}\n"
    assert checksums(tmp_path / "t") == [digest_of(whole)]


def test_of_a_larger_target_only_what_was_copied_counts(tmp_path):
    make_image(tmp_path / "a.raw", 3 * MiB)
    (tmp_path / "b.raw").write_bytes(b"\xa5" * (5 * MiB))
    ran = mpconv("convert", "-n", "--digest", "--verify", tmp_path / "a.raw", tmp_path / "b.raw")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert digest_of((tmp_path / "a.raw").read_bytes()) in ran.stdout


def test_a_snapshot_and_a_backing_chain(tmp_path):
    make_image(tmp_path / "base.raw", 5 * MiB)
    qemu_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", tmp_path / "a.qcow2")
    before = digest_of((tmp_path / "base.raw").read_bytes())
    qemu_img("snapshot", "-c", "monday", tmp_path / "a.qcow2")
    subprocess.run(["qemu-io", "-c", "write -P 7 1M 64k", str(tmp_path / "a.qcow2")], check=True, capture_output=True)
    allowed = ("--allow-backing", tmp_path / "a.qcow2")
    assert checksums("-l", "monday", *allowed) == [before]
    after = bytearray((tmp_path / "base.raw").read_bytes())
    after[MiB : MiB + 64 * KiB] = b"\x07" * (64 * KiB)
    assert checksums(*allowed) == [digest_of(bytes(after))]


@pytest.mark.parametrize(("order", "made"), [((), ()), (("-W",), ()), ((), ("-O", "qcow2"))])
def test_what_a_dead_worker_wrote_counts_once(tmp_path, order, made):
    source, target = tmp_path / "a.raw", tmp_path / "b"
    make_image(source, 32 * MiB)
    copy = Running("--digest", "--verify", "--workers", 2, *order, *made, "-r", "32M", source, target)
    copy.until_it_moves()
    workers = copy.workers()
    os.kill(workers[0], signal.SIGKILL)
    code, words = copy.end(30)
    assert code == 0
    warned(words, workers[:1])
    expected = digest_of(source.read_bytes())
    told = json.dumps({"digest": expected, "image": str(target)})
    assert f"{told}\n".encode() in copy.shown
    assert checksums(target) == [expected]


def test_what_salvaging_lost_counts_as_zeros(tmp_path, lun):
    store = lun(256 * KiB, thin=False)
    store.backing.write_bytes(b"\x01" * (256 * KiB))
    os.truncate(store.backing, 128 * KiB)
    ran = mpconv("convert", "--salvage", "-q", "--digest", store.url, tmp_path / "b.raw")
    expected = digest_of(b"\x01" * (128 * KiB) + bytes(128 * KiB))
    assert (ran.returncode, ran.stdout) == (0, f"{expected}  {tmp_path / 'b.raw'}\n")
    assert digest_of((tmp_path / "b.raw").read_bytes()) == expected


@pytest.mark.parametrize(("seed", "made"), [(1, ("-O", "raw")), (2, ("-O", "raw")), (3, ("-O", "qcow2"))])
def test_a_digest_leaves_the_target_s_allocation_as_it_is(tmp_path, seed, made):
    make_image(tmp_path / "a.raw", 12 * MiB + 512, seed)
    for name, options in (("b", ()), ("c", ("--digest",))):
        assert mpconv("convert", *made, *options, tmp_path / "a.raw", tmp_path / name).returncode == 0
    assert allocation(tmp_path / "b") == allocation(tmp_path / "c")
    qemu_img("compare", "-f", made[1], "-F", made[1], "-s", tmp_path / "b", tmp_path / "c")


def test_for_programs(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    digest = digest_of((tmp_path / "a.raw").read_bytes())
    ran = mpconv("checksum", "--output=json", tmp_path / "a.raw")
    assert json.loads(ran.stdout) == [{"filename": str(tmp_path / "a.raw"), "virtual-size": MiB, "digest": digest}]
    ran = mpconv("convert", "--progress=json", "--digest", "--verify", tmp_path / "a.raw", tmp_path / "b.raw")
    *lines, verified, told = map(json.loads, ran.stdout.splitlines())
    assert told == {"digest": digest, "image": str(tmp_path / "b.raw")}
    assert verified == {"verified": MiB, "of": MiB}
    assert list(dict.fromkeys(line["phase"] for line in lines)) == ["open", "copy", "flush", "verify", "done"]


def test_an_image_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    ran = mpconv("checksum", tmp_path / "missing", tmp_path / "a.raw")
    assert ran.returncode == 1
    assert ran.stdout == f"{digest_of((tmp_path / 'a.raw').read_bytes())}  {tmp_path / 'a.raw'}\n"
    assert ran.stderr == f"mpconv: Could not open '{tmp_path / 'missing'}': No such file or directory\n"


def test_an_image_that_a_program_writes_to_is_refused_unless_shared(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(tmp_path / "a.raw")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdin.write(b"length\n")
        writer.stdin.flush()
        assert writer.stdout.readline()
        ran = mpconv("checksum", tmp_path / "a.raw")
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "lock" in ran.stderr
        assert checksums("-U", tmp_path / "a.raw") == [digest_of((tmp_path / "a.raw").read_bytes())]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["checksum"], "Expecting an image file name"),
        (["checksum", "-T", "nonsense", "a.raw"], "Invalid source cache option: nonsense"),
        (["checksum", "--output=xml", "a.raw"], "--output must be used with human or json as argument."),
        (
            ["convert", "-C", "--digest", "a.raw", "b.raw"],
            "Cannot use --digest or --verify with copy offloading: its data is not read",
        ),
        (
            ["convert", "-O", "qcow2", "-B", "a.raw", "-F", "raw", "--verify", "a.raw", "b.raw"],
            "Cannot use --digest or --verify with a backing file: what is left to it is not read",
        ),
        (
            ["convert", "-O", "qcow2", "-o", "backing_file=a.raw,backing_fmt=raw", "--digest", "a.raw", "b.raw"],
            "Cannot use --digest or --verify with a backing file: what is left to it is not read",
        ),
        (
            ["convert", "--verify", "a.raw", "null:"],
            "--verify: 'null:' keeps nothing that could be read back: leave out --verify",
        ),
        *(
            (
                ["convert", f"--verify={wrong}", "a.raw", "b.raw"],
                f"Invalid --verify '{wrong}': all, source, or sample:N% with N above 0 and at most 100",
            )
            for wrong in ("", "some", "sample:0%", "sample:101%", "sample:5", "sample:-1%", "sample:nan%")
        ),
    ],
)
def test_refusals(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    make_image(tmp_path / "a.raw", MiB)
    ran = mpconv(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"mpconv: {words}\n")
    assert not Path("b.raw").exists()
