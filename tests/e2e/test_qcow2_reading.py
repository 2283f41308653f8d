"""qcow2 images that qemu-img and qemu-io make, read by mpconv; qemu-img judges bytes and block status."""

from __future__ import annotations

import asyncio
import itertools
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from mpconv.formats.opening import OpenOptions, open_source
from mpconv.model.errors import ImageError
from mpconv.model.extent import Kind
from mpconv.model.place import Place, Trust
from tests.conftest import identical, mpconv
from tests.support.qcow2 import (
    TRUSTING,
    Case,
    Layer,
    differences,
    extents_of,
    judge,
    make,
    make_case,
    make_patterns,
    script,
)

KiB, MiB = 1 << 10, 1 << 20
ORDERS = [(), ("-W",)]
NAMED = {
    "no bytes": Layer("a.qcow2", 0, ()),
    "one sector": Layer("a.qcow2", 512, (("write -s noise 0 512",),), cluster=512),
    "a sector short of a cluster": Layer("a.qcow2", 65024, (("write -s noise 1024 64000",),)),
    "zeros over data": Layer(
        "a.qcow2", MiB, (("write -s numbers 0 1048576", "write -z 4096 700000"),), cluster=4 * KiB
    ),
    "version 2, discarded": Layer("a.qcow2", MiB, (("write -s numbers 0 1048576", "discard 65536 262144"),), version=2),
    "preallocated": Layer("a.qcow2", 3 * MiB, (("write -s noise 70000 5000",),), preallocation="metadata"),
    "subclusters": Layer("a.qcow2", MiB, (("write -s noise 2048 2048", "write -z 10240 2048"),), extended_l2=True),
    "one refcount bit": Layer("a.qcow2", MiB, (("write -s numbers 0 1048576",),), compression="zlib", refcount_bits=1),
    "zstd of 2 MiB": Layer(
        "a.qcow2", 5 * MiB, (("write -s numbers 512 5000192",),), cluster=2 * MiB, compression="zstd"
    ),
    "raw data file": Layer("a.qcow2", MiB, (("write -s noise 0 70144", "write -z 0 65536"),), data_file="raw"),
}
"""Those that a random choice should not leave to chance."""
CASES = {**{name: Case((layer,)) for name, layer in NAMED.items()}, **{n: make_case(2026, n) for n in range(84)}}
REMOTE = Case(
    (
        Layer(
            "remote.qcow2",
            24 * MiB + 512,
            (tuple(f"write -s noise {at} 300032" for at in range(0, 24 * MiB, 5 * MiB)),),
            compression="zlib",
            snapshots=("kept",),
        ),
    )
)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patterns")
    make_patterns(folder)
    return folder


@pytest.mark.parametrize("case", CASES.values(), ids=map(str, CASES))
def test_bytes_size_and_status_are_those_of_qemu_img(case: Case, tmp_path: Path, patterns: Path):
    make(case, tmp_path, patterns)
    assert asyncio.run(differences(case, tmp_path)) == [], script(case)


def test_what_is_drawn_covers_what_there_is():
    layers = [layer for case in CASES.values() for layer in case.layers if layer.format == "qcow2"]
    for field, values in {
        "version": {2, 3},
        "cluster": {512, 4 * KiB, 16 * KiB, 64 * KiB, 2 * MiB},
        "refcount_bits": {1, 2, 4, 8, 16, 32, 64},
        "compression": {"", "zlib", "zstd"},
        "extended_l2": {False, True},
        "lazy_refcounts": {False, True},
        "crashed": {False, True},
        "data_file": {"", "file", "raw"},
        "preallocation": {"off", "metadata", "falloc"},
    }.items():
        assert {getattr(layer, field) for layer in layers} == values, field
    assert {len(case.layers) for case in CASES.values()} == {1, 2, 3, 4}
    assert {case.layers[0].format for case in CASES.values()} == {"raw", "qcow2"}
    pairs = [pair for case in CASES.values() for pair in itertools.pairwise(case.layers)]
    assert {(above.size > below.size) - (above.size < below.size) for below, above in pairs} == {-1, 0, 1}
    assert sum(case.snapshot is not None for case in CASES.values()) > 5
    assert sum(layer.resized is not None for layer in layers) > 5


@pytest.mark.parametrize("layer", [
    Layer("a.qcow2", 64 * MiB, (("write -s noise 3145728 70144",),), preallocation="metadata"),
    Layer("a.qcow2", 64 * MiB, (("write -s noise 3145728 70144",),), data_file="raw"),
], ids=["preallocated", "raw data file"])  # fmt: skip
def test_what_was_never_written_is_not_read(tmp_path: Path, patterns: Path, layer: Layer):
    """All clusters are there, but the file system knows where the file has holes."""
    make(Case((layer,)), tmp_path, patterns)

    async def data(how: OpenOptions) -> int:
        image = await open_source([Place(url=str(tmp_path / "a.qcow2"))], how)
        extents = await extents_of(image)
        await image.close()
        return sum(extent.length for extent in extents if extent.kind is Kind.DATA)

    assert 70144 <= asyncio.run(data(TRUSTING)) < MiB
    assert asyncio.run(data(replace(TRUSTING, trusting=False))) == 64 * MiB
    assert asyncio.run(differences(Case((layer,)), tmp_path)) == []


def test_a_size_that_is_no_whole_sector_is_rounded_down(tmp_path: Path, patterns: Path):
    case = Case((Layer("a.qcow2", 1024, (("write -s numbers 0 1024",),)),))
    make(case, tmp_path, patterns)
    with (tmp_path / "a.qcow2").open("r+b") as file:
        file.seek(24)
        file.write(struct.pack(">Q", 1023))
    assert asyncio.run(differences(case, tmp_path)) == []
    assert judge(case, tmp_path).stat().st_size == 512


@pytest.mark.parametrize("wanted", ["1", "2", "snapshot.id=2", "snapshot.name=1", "snapshot.id=1,snapshot.name=2"])
def test_a_snapshot_by_id_and_by_name(tmp_path: Path, patterns: Path, wanted: str):
    """Each one's id is the other one's name: the id wins."""
    steps = (("write -s noise 0 65536",), ("write -s numbers 0 65536",), ("write -s others 0 65536",))
    made = Case((Layer("a.qcow2", MiB, steps, snapshots=("2", "1")),))
    make(made, tmp_path, patterns)
    case = Case(made.layers, wanted)
    assert asyncio.run(differences(case, tmp_path)) == []


@pytest.mark.parametrize("wanted", ["first", "3", "snapshot.id=1,snapshot.name=1"])
def test_a_snapshot_that_is_not_there(tmp_path: Path, patterns: Path, wanted: str):
    make(Case((Layer("a.qcow2", MiB, ((),) * 3, snapshots=("2", "1")),)), tmp_path, patterns)
    with pytest.raises(ImageError, match="Failed to load snapshot: Can't find snapshot"):
        asyncio.run(open_source([Place(url=str(tmp_path / "a.qcow2"), snapshot=wanted)]))


@pytest.mark.parametrize("order", ORDERS)
def test_by_the_command_line_with_workers(tmp_path: Path, patterns: Path, order: tuple[str, ...]):
    make(REMOTE, tmp_path, patterns)
    source, target = tmp_path / "remote.qcow2", tmp_path / "copy.raw"
    done = mpconv("convert", "--workers", 3, "-m", 20, *order, source, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(judge(REMOTE, tmp_path), target)


@pytest.mark.parametrize("order", ORDERS)
def test_over_nfs(nfs, tmp_path: Path, patterns: Path, order: tuple[str, ...]):
    make(REMOTE, tmp_path, patterns)
    name = f"remote{len(order)}.qcow2"
    nfs.path(name).write_bytes((tmp_path / "remote.qcow2").read_bytes())
    target = nfs.url(f"copy{len(order)}.raw")
    done = mpconv("convert", "--workers", 3, "-m", 20, *order, nfs.url(name), target)
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(judge(REMOTE, tmp_path), nfs.path(f"copy{len(order)}.raw"))


@pytest.mark.parametrize("order", ORDERS)
def test_a_lun_that_holds_an_image(lun: Callable[..., object], tmp_path: Path, patterns: Path, order: tuple[str, ...]):
    """It is longer than the image; what comes after does not matter."""
    make(REMOTE, tmp_path, patterns)
    source = lun(32 * MiB, old_data=True)
    with source.backing.open("r+b") as file:
        file.write((tmp_path / "remote.qcow2").read_bytes())
    target = lun(24 * MiB + 512, old_data=True)
    done = mpconv("convert", "-f", "qcow2", "--workers", 2, "-n", *order, source.url, target.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(judge(REMOTE, tmp_path), target.backing)


def test_backing_files_over_nfs(nfs, tmp_path: Path, patterns: Path):
    """Names inside images are looked for beside them, with the same server and parameters."""
    case = Case(
        (
            Layer("base.raw", 3 * MiB, (("write -s noise 0 2000000",),), format="raw"),
            Layer("middle.qcow2", 4 * MiB, (("write -s numbers 1048576 100352",),), cluster=4 * KiB),
            Layer("top.qcow2", 5 * MiB, (("write -z 0 65536", "write -s others 131072 4096"),)),
        )
    )
    make(case, tmp_path, patterns)
    for layer in case.layers:
        nfs.path(layer.name).write_bytes((tmp_path / layer.name).read_bytes())

    async def read() -> bytes:
        image = await open_source([Place(url=nfs.url("top.qcow2"))], OpenOptions(trust=Trust(backing=[""])))
        buffer = bytearray(image.size)
        await image.read_into(0, memoryview(buffer))
        await image.close()
        return bytes(buffer)

    assert asyncio.run(read()) == judge(case, tmp_path).read_bytes()


def test_an_image_in_use_is_refused_unless_shared(tmp_path: Path, patterns: Path):
    make(Case((NAMED["one sector"],)), tmp_path, patterns)
    source = tmp_path / "a.qcow2"
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.read(8) == b"qemu-io>"
        refused = mpconv("convert", source, tmp_path / "b.raw")
        taken = mpconv("convert", "-U", source, tmp_path / "b.raw")
        other.stdin.close()
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) <= 2 and "lock" in refused.stderr
    assert (taken.returncode, taken.stderr) == (0, "")
