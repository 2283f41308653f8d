"""qcow2 images that mpconv makes, beside those that qemu-img makes of the same command line; qemu-img judges both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import make_image, mpconv
from tests.e2e.test_faults import Running, one_line, warned
from tests.support.qcow2_writing import Case, Image, differences, make_case, script
from tests.support.servers import NfsServer

KiB, MiB = 1 << 10, 1 << 20
ORDERS = [(), ("-W",)]
TEXT = ((5 * MiB, "text"),)
NAMED = {
    "no bytes": Case((Image("a.raw", 0, ()),)),
    "no bytes in version 2, compressed": Case((Image("a.raw", 0, ()),), {"compat": "0.10"}, ("-c",)),
    "one sector": Case((Image("a.raw", 512, ((512, "noise"),)),)),
    "one sector of zeros, compressed, in subclusters": Case(
        (Image("a.raw", 512, ((512, "zero"),)),), {"extended_l2": "on"}, ("-c",)
    ),
    "noise and text, compressed, in subclusters": Case(
        (Image("a.raw", 3 * MiB, ((MiB, "noise"), (MiB, "text"), (MiB, "noise"))),), {"extended_l2": "on"}, ("-c",)
    ),
    "one refcount bit, compressed": Case((Image("a.raw", 5 * MiB, TEXT),), {"refcount_bits": "1"}, ("-c", "-W")),
    "two refcount bits, compressed": Case((Image("a.raw", 5 * MiB, TEXT),), {"refcount_bits": "2"}, ("-c",)),
    "many tables": Case((Image("a.raw", 5 * MiB, TEXT),), {"cluster_size": "512", "refcount_bits": "64"}, ("-W",)),
    "holes over a backing file that is not the source's": Case(
        (Image("a.qcow2", MiB, ((MiB // 2, "text"), (MiB // 2, "hole")), "qcow2"),),
        backing=Image("base.raw", MiB, ((MiB, "noise"),)),
    ),
    "zeros in a raw data file": Case(
        (Image("a.raw", MiB, ((MiB, "hole"),)),), {"data_file": "made.data", "data_file_raw": "on"}
    ),
    "zeros in full subclusters": Case(
        (Image("a.raw", MiB, ((MiB // 2, "text"), (MiB // 2, "hole"))),),
        {"extended_l2": "on", "preallocation": "full"},
    ),
}
"""Those that a random choice should not leave to chance."""
CASES = {**NAMED, **{str(number): make_case(2026, number) for number in range(50)}}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_image_is_as_qemu_img_makes_it(case: Case, tmp_path: Path):
    assert differences(case, tmp_path) == [], script(case)


def test_what_is_drawn_covers_what_there_is():
    for key, values in {
        "compat": {"0.10"},
        "extended_l2": {"on", "off"},
        "lazy_refcounts": {"on", "off"},
        "data_file_raw": {"on"},
        "preallocation": {"metadata", "falloc", "full"},
        "compression_type": {"zstd"},
    }.items():
        assert {case.options[key] for case in CASES.values() if key in case.options} == values, key
    assert {case.options["cluster_size"] for case in CASES.values() if "cluster_size" in case.options} >= {
        "512", "4096", "65536", "2097152",
    }  # fmt: skip
    assert {len(case.sources) for case in CASES.values()} == {1, 2, 3}
    assert {case.sources[0].below == case.backing for case in CASES.values() if case.backing} == {True, False}
    for word in ("-c", "-W", "-S"):
        assert {word in case.words for case in CASES.values()} == {True, False}


def sound(image: object, source: object) -> None:
    """Nothing amiss, nothing leaked, and the source's bytes. Both are local files."""
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(image)], check=True)
    command = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(source), str(image)]
    assert subprocess.run(command, check=False).returncode == 0


def refused(image: Path) -> bool:
    """Whether qemu-img takes it for anything but a whole image: it cannot be opened, or holds no disk to read."""
    told = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(image)], capture_output=True, check=False)
    return told.returncode != 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compress", [(), ("-c",)])
def test_over_nfs(nfs, tmp_path: Path, order: tuple[str, ...], compress: tuple[str, ...]):
    source, name = tmp_path / "a.raw", f"written{len(order)}{len(compress)}.qcow2"
    make_image(source, 20 * MiB + 512)
    done = mpconv("convert", "-O", "qcow2", "--workers", 3, *order, *compress, source, nfs.url(name))
    assert (done.returncode, done.stderr) == (0, "")
    sound(nfs.path(name), source)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compress", [(), ("-c",)])
@pytest.mark.parametrize(
    ("block_size", "cluster"), [(512, 512), (512, 65536), (4096, 512), (4096, 2048), (4096, 65536)]
)
def test_on_a_lun_full_of_old_data(
    lun, tmp_path: Path, order: tuple[str, ...], compress: tuple[str, ...], block_size: int, cluster: int
):
    source = tmp_path / "a.raw"
    make_image(source, 6 * MiB + 512)
    target = lun(12 * MiB, block_size=block_size, old_data=True)
    options = ["-O", "qcow2", "-o", f"cluster_size={cluster}"]
    done = mpconv("convert", *options, "--workers", 3, *order, *compress, source, target.url)
    assert (done.returncode, done.stderr) == (0, "")
    sound(target.backing, source)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compress", [(), ("-c",)])
def test_a_lun_that_is_too_small(lun, tmp_path: Path, order: tuple[str, ...], compress: tuple[str, ...]):
    source = tmp_path / "a.raw"
    source.write_bytes(os.urandom(8 * MiB))
    target = lun(4 * MiB, old_data=True)
    done = mpconv("convert", "-O", "qcow2", "--workers", 2, *order, *compress, source, target.url)
    assert done.returncode == 1
    one_line(done.stderr, "incomplete")
    assert refused(target.backing)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compress", [(), ("-c",)])
def test_a_full_disk(small_disk: Path, tmp_path: Path, order: tuple[str, ...], compress: tuple[str, ...]):
    source, target = tmp_path / "a.raw", small_disk / "b.qcow2"
    source.write_bytes(os.urandom(8 * MiB))
    done = mpconv("convert", "-O", "qcow2", "--workers", 2, *order, *compress, source, target)
    assert done.returncode == 1
    one_line(
        done.stderr,
        "error while writing at byte",
        "b.qcow2",
        "No space left on device",
        "incomplete, so it was removed",
    )
    assert not target.exists()


def test_a_full_disk_behind_nfs(small_disk: Path, tmp_path: Path):
    source = tmp_path / "a.raw"
    source.write_bytes(os.urandom(8 * MiB))
    with NfsServer(tmp_path / "full-nfs", small_disk / "export") as server:
        done = mpconv("convert", "-O", "qcow2", source, server.url("b.qcow2"))
        assert done.returncode == 1
        one_line(done.stderr, "error while writing at byte", "b.qcow2", "No space left on device", "incomplete, so it")
        assert not server.path("b.qcow2").exists()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compress", [(), ("-c",)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_copy_survives_a_worker_that_dies(
    tmp_path: Path, order: tuple[str, ...], compress: tuple[str, ...], count: int
):
    source, target = tmp_path / "a.raw", tmp_path / "b.qcow2"
    make_image(source, 64 * MiB)
    copy = Running("-O", "qcow2", "--workers", count, *order, *compress, "-r", "32M", source, target)
    copy.until_it_moves()
    workers = copy.workers()
    assert len(workers) == count
    os.kill(workers[0], signal.SIGKILL)
    code, words = copy.end(30)
    assert code == 0
    warned(words, workers[:1])
    sound(target, source)


@pytest.mark.parametrize("version", ["0.10", "1.1"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_copy_that_ends_in_the_middle_leaves_nothing_that_looks_whole(tmp_path: Path, version: str, number: int):
    source, target = tmp_path / "a.raw", tmp_path / "b.qcow2"
    make_image(source, 64 * MiB)
    copy = Running("-O", "qcow2", "-o", f"compat={version}", "--workers", 2, "-c", "-r", "32M", source, target)
    copy.until_it_moves()
    copy.process.send_signal(number)
    code, _ = copy.end()
    assert code != 0
    assert refused(target)


def test_zeros_past_the_end_of_the_source_s_backing_file_stay_zeros_over_a_longer_one(tmp_path: Path):
    """qemu-img 7.2 leaves them to the target's backing file, whose bytes show there then."""
    (tmp_path / "short.raw").write_bytes(b"\x01" * (MiB // 2))
    (tmp_path / "long.raw").write_bytes(b"\x01" * (MiB // 2) + b"\x02" * (MiB // 2))
    source, target = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "short.raw", "-F", "raw", str(source), "1M"]
    subprocess.run(command, check=True)
    done = mpconv("convert", "--allow-backing", "-O", "qcow2", "-B", "long.raw", "-F", "raw", source, target)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(["qemu-img", "compare", "-q", str(source), str(target)], check=True)


@pytest.mark.parametrize("options", [(), ("-c",), ("-W",), ("-c", "-W", "--workers", "2")], ids=" ".join)
@pytest.mark.parametrize("version", ["0.10", "1.1"])
@pytest.mark.parametrize("size", [MiB, MiB + 512, 512])
def test_behind_the_end_of_a_short_backing_file_zeros_take_up_nothing(
    tmp_path: Path, size: int, version: str, options: tuple[str, ...]
):
    base, source, made = tmp_path / "short.base", tmp_path / "a.raw", tmp_path / "made.qcow2"
    base.write_bytes(b"b" * size)
    chunk = 64 * KiB
    with source.open("wb") as file:  # a hole, zeros, a hole; then data, zeros and a hole behind the base's end
        for at, content in ((5, b"\0"), (24, b"d"), (30, b"\0")):
            file.seek(at * chunk)
            file.write(content * 2 * chunk)
        file.truncate(3 * MiB)
    made_as = ["-f", "raw", "-O", "qcow2", "-o", f"compat={version}", "-B", base, "-F", "raw"]
    done = mpconv("convert", *made_as, *options, source, made)
    assert (done.returncode, done.stderr) == (0, "")
    sound(made, source)
    mapped = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", made]))
    behind = -(-size // chunk) * chunk
    held = [one for one in mapped if one["start"] + one["length"] > behind and one["present"] and one["depth"] == 0]
    assert [(max(behind, one["start"]), one["length"]) for one in held if one["data"]] == [(24 * chunk, 2 * chunk)]
    assert all(one["data"] or one["start"] < behind for one in held)
