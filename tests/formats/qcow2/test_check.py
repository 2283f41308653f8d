"""A check beside qemu-img's: whole images of every kind, and images that were damaged on purpose."""

from __future__ import annotations

import asyncio
import json
import resource
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpconv.cli.commands.check import json_lines
from mpconv.formats.qcow2.check.counts import Counts
from mpconv.formats.qcow2.check.scan import check
from mpconv.model.errors import ImageError
from mpconv.model.place import Place
from mpconv.transports import open_place
from mpconv.transports.base import Access

KiB, MiB = 1 << 10, 1 << 20
COPIED, COMPRESSED = 1 << 63, 1 << 62


def run(*command: object) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=60).stdout


def make(path: Path, options: str = "", size: object = "8M", *writes: str) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), path, size)
    write(path, *writes)
    return path


def write(path: Path, *commands: str) -> None:
    if commands:
        run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), path)


def ours(path: Path) -> tuple[int, dict[str, object], list[str]]:
    """Exit code, JSON and what is told line by line."""
    told: list[str] = []

    async def checked() -> object:
        store = await open_place(Place(url=str(path)), Access.READ)
        try:
            return await check(store, told.append)
        finally:
            await store.close()

    report = asyncio.run(checked())
    code = 1 if report.check_errors else 2 if report.corruptions else 3 if report.leaks else 0
    return code, json.loads("\n".join(json_lines(report, str(path)))), sorted("\n".join(told).splitlines())


def theirs(path: Path) -> tuple[int, dict[str, object], list[str]]:
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", "--output=json", str(path)], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.startswith("qemu-img: ")]
    return done.returncode, json.loads(done.stdout), sorted(said)


def both(path: Path) -> tuple[int, dict[str, object], list[str]]:
    """What both do alike."""
    found = ours(path)
    assert found == theirs(path)
    return found


WRITES = ("write -P 1 0 1M", "write -P 2 5M 512k", "write -P 3 3000k 100k", "write -z 2M 256k", "write -P 4 1030k 4k")
SCATTERED = tuple(f"write -P 9 {(n * 37 % 60) * 128}k 64k" for n in range(60))
OPTIONS = [
    "", "compat=0.10", "compat=0.10,cluster_size=512", *(f"cluster_size={size}" for size in ("512", "4k", "2M")),
    *(f"refcount_bits={1 << order}" for order in range(7)),
    *(f"refcount_bits={1 << order},cluster_size=512" for order in range(7)),
    "extended_l2=on", "extended_l2=on,cluster_size=16k,refcount_bits=1", "lazy_refcounts=on", "compression_type=zstd",
    "preallocation=metadata", "preallocation=falloc", "preallocation=full,cluster_size=4k",
    "extended_l2=on,preallocation=metadata",
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_a_whole_image(tmp_path, options):
    image = make(tmp_path / "a.qcow2", options, "8M", *WRITES)
    code, facts, told = both(image)
    assert (code, told) == (0, [])
    assert facts["allocated-clusters"] > 0


@pytest.mark.parametrize("size", [0, 512, 1 * MiB + 512, "1T"])
@pytest.mark.parametrize("options", ["", "cluster_size=64k,extended_l2=on"])
def test_an_empty_image(tmp_path, size, options):
    assert both(make(tmp_path / "a.qcow2", options, size))[0] == 0


@pytest.mark.parametrize("options", ["", "cluster_size=4k", "extended_l2=on", "refcount_bits=64,cluster_size=4k"])
def test_fragments(tmp_path, options):
    _, facts, _ = both(make(tmp_path / "a.qcow2", options, "8M", *SCATTERED))
    assert facts["fragmented-clusters"] > 10


@pytest.mark.parametrize(
    "options", ["", "cluster_size=4k", "cluster_size=512", "cluster_size=2M", "compression_type=zstd", "extended_l2=on"]
)
def test_compressed_clusters(tmp_path, options):
    source = tmp_path / "a.raw"
    source.write_bytes(b"".join(bytes([n % 256]) * (n % 3000 + 1) for n in range(2000)).ljust(4 * MiB, b"\0"))
    image = tmp_path / "a.qcow2"
    command = ["qemu-img", "convert", "-c", "-O", "qcow2", *(("-o", options) if options else ()), source, image]
    run(*command)
    code, facts, _ = both(image)
    assert code == 0
    assert facts["compressed-clusters"] > 0


@pytest.mark.parametrize("options", ["", "compat=0.10", "cluster_size=4k,refcount_bits=8", "extended_l2=on"])
def test_snapshots(tmp_path, options):
    image = make(tmp_path / "a.qcow2", options, "8M", *WRITES)
    for number in range(3):
        run("qemu-img", "snapshot", "-c", f"snapshot {number}", image)
        write(image, f"write -P 7 {number}M 700k", "write -P 8 5M 64k")
    assert both(image)[0] == 0


@pytest.mark.parametrize("bits", [8, 16])
def test_more_than_255_references(tmp_path, bits):
    """To a host cluster that holds hundreds of compressed ones."""
    source = tmp_path / "a.raw"
    source.write_bytes(b"x" * 40 * MiB)
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", f"refcount_bits={bits}", source, tmp_path / "a.qcow2")
    assert both(tmp_path / "a.qcow2")[0] == 0
    assert (tmp_path / "a.qcow2").stat().st_size < 512 * KiB


def test_bitmaps(tmp_path):
    image = make(tmp_path / "a.qcow2", "cluster_size=4k", "64M")
    for name, grain in (("one", "512"), ("two", "64k"), ("three", "1M")):
        run("qemu-img", "bitmap", "--add", "-g", grain, image, name)
    write(image, *WRITES)
    assert both(image)[0] == 0


def test_an_external_data_file(tmp_path):
    make(tmp_path / "a.qcow2", f"data_file={tmp_path}/a.data", "8M", *WRITES)
    code, facts, _ = both(tmp_path / "a.qcow2")
    assert code == 0
    assert facts["allocated-clusters"] > 0
    (tmp_path / "a.data").unlink()
    assert ours(tmp_path / "a.qcow2")[0] == 0


def test_a_backing_file_is_not_opened(tmp_path):
    make(tmp_path / "base.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "base.qcow2", "-F", "qcow2", tmp_path / "a.qcow2")
    assert both(tmp_path / "a.qcow2")[0] == 0
    (tmp_path / "base.qcow2").unlink()
    assert ours(tmp_path / "a.qcow2")[0] == 0


def test_lazy_refcounts_after_a_crash(tmp_path):
    image = make(tmp_path / "a.qcow2", "lazy_refcounts=on", "8M")
    crash = ["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "flush", "-c", "abort", str(image)]
    subprocess.run(crash, check=False, capture_output=True, timeout=60)
    assert both(image)[0] == 2


class Damaged:
    """An image of 8 MiB with 64 KiB clusters, 1 MiB of them allocated, and what is where in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        start = path.read_bytes()[:104]
        self.bits, self.l1 = struct.unpack_from(">I", start, 20)[0], struct.unpack_from(">Q", start, 40)[0]
        self.table, self.snapshots = struct.unpack_from(">Q", start, 48)[0], struct.unpack_from(">Q", start, 64)[0]
        self.size = 1 << self.bits
        self.block = self.get(self.table)
        self.l2 = self.get(self.l1) & 0x00FF_FFFF_FFFF_FE00

    def get(self, at: int) -> int:
        with self.path.open("rb") as file:
            file.seek(at)
            return int(struct.unpack(">Q", file.read(8))[0])

    def put(self, at: int, value: int, kind: str = ">Q") -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(struct.pack(kind, value))

    def change(self, at: int, change: Callable[[int], int]) -> None:
        self.put(at, change(self.get(at)))

    def refcount(self, cluster: int, value: int) -> None:
        self.put(self.block + 2 * cluster, value, ">H")

    def entry(self, index: int, value: int) -> None:
        self.put(self.l2 + 8 * index, value)


DAMAGES: dict[str, tuple[int, Callable[[Damaged], object]]] = {
    "two entries for one cluster": (2, lambda d: d.entry(1, d.get(d.l2))),
    "an entry behind the end": (2, lambda d: d.entry(0, COPIED | 1 << 40)),
    "an entry far behind the end": (2, lambda d: d.entry(0, COPIED | 0x00FF_FFFF_FFFF_0000)),
    "an entry just behind the end": (2, lambda d: d.entry(0, COPIED | d.path.stat().st_size)),
    "an entry for the header": (2, lambda d: d.entry(200 // 8, COPIED | 0x200 * 128)),
    "an entry for the L1 table": (2, lambda d: d.entry(0, COPIED | d.l1)),
    "an entry for its own L2 table": (2, lambda d: d.entry(0, COPIED | d.l2)),
    "an unaligned entry": (2, lambda d: d.change(d.l2, lambda e: e + 512)),
    "an unaligned zero entry": (2, lambda d: d.change(d.l2, lambda e: e + 513)),
    "reserved bits in an entry": (2, lambda d: d.change(d.l2 + 8, lambda e: e | 1 << 57 | 4)),
    "reserved bits in an empty entry": (2, lambda d: d.entry(100, 1 << 57)),
    "a lost entry": (3, lambda d: d.entry(0, 0)),
    "a refcount of 0": (2, lambda d: d.refcount(d.get(d.l2) % COPIED // d.size, 0)),
    "a refcount of 2": (2, lambda d: d.refcount(d.get(d.l2) % COPIED // d.size, 2)),
    "a refcount of 300": (2, lambda d: d.refcount(d.get(d.l2) % COPIED // d.size, 300)),
    "a refcount of 256 for nothing": (
        3, lambda d: (d.entry(0, 0), d.refcount(d.get(d.l2 + 8) % COPIED // d.size - 1, 256))
    ),
    "a header that is free": (2, lambda d: d.refcount(0, 0)),
    "a leak": (3, lambda d: d.refcount(d.path.stat().st_size // d.size - 1, 1) or d.entry(15, 0)),
    "a refcount behind the end": (0, lambda d: d.refcount(1000, 1)),
    "a leak in a longer file": (3, lambda d: (d.refcount(30, 7), d.path.open("r+b").truncate(40 * d.size))),
    "COPIED is missing": (2, lambda d: d.change(d.l2 + 24, lambda e: e & ~COPIED)),
    "COPIED is missing in the L1": (2, lambda d: d.change(d.l1, lambda e: e & ~COPIED)),
    "COPIED is wrong": (2, lambda d: (d.refcount(d.get(d.l2) % COPIED // d.size, 2), d.entry(1, d.get(d.l2)))),
    "a compressed entry with COPIED": (2, lambda d: d.entry(20, COPIED | COMPRESSED | 0x50000)),
    "a compressed entry behind the end": (2, lambda d: d.entry(20, COMPRESSED | 1 << 40)),
    "a compressed entry that shares": (2, lambda d: d.entry(20, COMPRESSED | 0x5FE00 | 3 << 54)),
    "a compressed entry up to the end": (2, lambda d: d.entry(20, COMPRESSED | d.path.stat().st_size - 700 | 60 << 54)),
    "reserved bits in the L1": (2, lambda d: d.change(d.l1, lambda e: e | 1 << 60 | 1)),
    "an L2 table behind the end": (2, lambda d: d.put(d.l1, COPIED | 1 << 40)),
    "an L2 table at nothing": (2, lambda d: d.put(d.l1, COPIED)),
    "an L2 table that is lost": (3, lambda d: d.put(d.l1, 0)),
    "the refcount block is lost": (2, lambda d: d.put(d.table, 0)),
    "the refcount block is outside": (2, lambda d: d.put(d.table, 1 << 40)),
    "the refcount block is the L1": (2, lambda d: d.put(d.table, d.l1)),
    "the refcount block twice": (2, lambda d: d.put(d.table + 8, d.block)),
    "a refcount block unaligned": (2, lambda d: d.put(d.table + 8, d.block + 512)),
    "a refcount block with reserved bits": (2, lambda d: d.put(d.table, d.block + 1)),
    "a file that is cut off": (2, lambda d: d.path.open("r+b").truncate(d.get(d.l2 + 24) % COPIED + 512)),
    "a file that is cut off in a cluster": (0, lambda d: d.path.open("r+b").truncate(d.path.stat().st_size - 512)),
}  # fmt: skip


@pytest.fixture
def image(tmp_path):
    return Damaged(make(tmp_path / "a.qcow2", "", "8M", "write -P 1 0 1M"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image(image, damage):
    expected, do = DAMAGES[damage]
    do(image)
    assert both(image.path)[0] == expected


@pytest.mark.parametrize("order", range(7))
def test_wrong_refcounts_of_every_width(tmp_path, order):
    damaged = Damaged(make(tmp_path / "a.qcow2", f"refcount_bits={1 << order}", "8M", "write -P 1 0 1M"))
    damaged.put(damaged.block + (2 << order), 0x0103_8100_FF02_0001)
    damaged.path.open("r+b").truncate(300 * damaged.size)
    assert both(damaged.path)[0] == 2


@pytest.mark.parametrize("order", [0, 1, 3])
def test_more_references_than_a_refcount_can_say(tmp_path, order):
    damaged = Damaged(make(tmp_path / "a.qcow2", f"refcount_bits={1 << order}", "40M", "write -P 1 0 1M"))
    for index in range(1, 300):
        damaged.entry(index, damaged.get(damaged.l2))
    code, _, told = both(damaged.path)
    assert code == 2
    assert any(line.startswith("ERROR: overflow") for line in told)


SUBCLUSTERS: dict[str, tuple[int, int]] = {
    "both allocated and zero": (0, 1 << 32 | 1),
    "allocated and nowhere": (50, 1),
    "zero and nowhere": (50, 5 << 32),
}


@pytest.mark.parametrize("damage", SUBCLUSTERS)
def test_wrong_subclusters(tmp_path, damage):
    index, bitmap = SUBCLUSTERS[damage]
    damaged = Damaged(make(tmp_path / "a.qcow2", "extended_l2=on", "8M", "write -P 1 0 1M"))
    damaged.put(damaged.l2 + 16 * index + 8, bitmap)
    assert both(damaged.path)[0] == (0 if damage == "zero and nowhere" else 2)


def test_a_compressed_cluster_with_subclusters(tmp_path):
    damaged = Damaged(make(tmp_path / "a.qcow2", "extended_l2=on", "8M", "write -P 1 0 1M"))
    damaged.put(damaged.l2 + 16 * 50, COMPRESSED | 0x50000)
    damaged.put(damaged.l2 + 16 * 50 + 8, 1)
    assert both(damaged.path)[0] == 2


def test_a_wrong_entry_of_an_image_with_a_data_file(tmp_path):
    damaged = Damaged(make(tmp_path / "a.qcow2", f"data_file={tmp_path}/a.data", "8M", "write -P 1 0 1M"))
    damaged.entry(3, COMPRESSED | 0x50000)
    damaged.change(damaged.l2 + 40, lambda entry: entry & ~COPIED)
    assert both(damaged.path)[0] == 2


@pytest.mark.parametrize("field", ["offset", "size"])
def test_a_snapshot_that_cannot_be(tmp_path, field):
    path = make(tmp_path / "a.qcow2", "", "8M", "write -P 1 0 1M")
    run("qemu-img", "snapshot", "-c", "one", path)
    damaged = Damaged(path)
    if field == "offset":
        damaged.change(damaged.snapshots, lambda offset: offset + 512)
    else:
        damaged.put(damaged.snapshots + 8, 0x0100_0000, ">I")
    assert both(path)[0] == 2


def test_a_snapshot_with_a_table_of_another(tmp_path):
    """Both states have one L1 table: it and all below it count twice."""
    path = make(tmp_path / "a.qcow2", "", "8M", "write -P 1 0 1M")
    run("qemu-img", "snapshot", "-c", "one", path)
    damaged = Damaged(path)
    damaged.put(damaged.snapshots, damaged.l1)
    assert both(path)[0] == 2


def test_an_unaligned_l2_table_is_an_error_for_both(image):
    image.change(image.l1, lambda entry: entry + 512)
    assert ours(image.path)[0] == theirs(image.path)[0] == 2


def test_of_very_many_errors_all_are_counted_and_some_are_told(image):
    image.put(image.l1, image.get(image.l2))
    (code, facts, told), expected = ours(image.path), theirs(image.path)
    assert (code, facts) == expected[:2]
    assert len(expected[2]) > len(told) == 10_001
    assert set(told) - set(expected[2]) == {"More than 10000 errors: no more of them are listed"}


def test_refcounts_that_cannot_be_read(image):
    """The first of all blocks: nothing is known, which ends in "Check failed" and exit code 1."""
    image.put(image.table, image.block + 512)
    found, expected = ours(image.path), theirs(image.path)
    assert found[:2] == expected[:2]
    assert found[0] == 1


def test_a_broken_bitmap_directory(tmp_path):
    path = make(tmp_path / "a.qcow2")
    run("qemu-img", "bitmap", "--add", path, "one")
    damaged = Damaged(path)
    whole = path.read_bytes()
    at = whole.index(b"\x23\x85\x28\x75") + 8
    damaged.put(damaged.get(at + 16) + 16, 7, ">B")
    with pytest.raises(ImageError, match=r"Bitmap 'one' doesn't satisfy the constraints$"):
        ours(path)
    assert subprocess.run(["qemu-img", "check", "-q", path], check=False, capture_output=True).returncode == 1


def sparse_image(path: Path, size: int, l1: Callable[[int], int], l2: bytes = b"") -> None:
    """Clusters of 64 KiB, an L1 table of 32 MiB with the entry `l1(index)`, and an L2 table that all may point to."""
    entries = 4 << 20
    with path.open("wb") as file:
        file.truncate(size)
        fields = (b"QFI\xfb", 2, 0, 0, 16, 1 << 50, 0, entries, 1 << 20, 1 << 16, 1, 0, 0)
        file.write(struct.pack(">4sIQIIQIIQQIIQ", *fields))
        file.seek(1 << 20)
        file.write(struct.pack(f">{entries}Q", *map(l1, range(entries))))
        file.seek(64 * MiB)
        file.write(l2)


HOSTILE: dict[str, tuple[int, Callable[[int], int], bytes]] = {
    "all to one": (1 << 40, lambda index: 64 * MiB, struct.pack(">8192Q", *(n << 16 for n in range(8192)))),
    "all to the L1": (1 << 40, lambda index: 1 << 20, b""),
    "garbage": (1 << 40, lambda index: index * 0x9E37_79B9_7F4A_7C15 % (1 << 64), b""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_image_is_given_up_soon(tmp_path, kind):
    sparse_image(tmp_path / "a.qcow2", *HOSTILE[kind])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ImageError, match="the check was given up"):
        ours(tmp_path / "a.qcow2")
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * KiB


def test_a_refcount_table_of_one_block_is_given_up(tmp_path):
    image = tmp_path / "a.qcow2"
    with image.open("wb") as file:
        file.truncate(1 << 40)
        fields = (b"QFI\xfb", 2, 0, 0, 16, 1 << 30, 0, 2, 1 << 20, 1 << 24, 128, 0, 0)
        file.write(struct.pack(">4sIQIIQIIQQIIQ", *fields))
        file.seek(1 << 16)
        file.write(b"\xa5" * (1 << 16))
        file.seek(1 << 24)
        file.write(struct.pack(">Q", 1 << 16) * (1 << 20))
    with pytest.raises(ImageError, match="the same blocks again and again"):
        ours(image)


def test_a_million_refcount_blocks_in_holes_are_given_up(tmp_path):
    image, blocks = tmp_path / "a.qcow2", 1 << 20
    with image.open("wb") as file:
        file.truncate(blocks << 17)
        fields = (b"QFI\xfb", 2, 0, 0, 9, 512, 0, 1, 512 + 8 * blocks, 512, 8 * blocks >> 9, 0, 0)
        file.write(struct.pack(">4sIQIIQIIQQIIQ", *fields))
        file.seek(512)
        for number in range(blocks):  # neighbours in the table lie far apart
            place = (number * 7919) % blocks
            file.write(struct.pack(">Q", (1 << 24) + place * 120 * 1024))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ImageError, match="lie in holes"):
        ours(image)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * KiB


def test_l1_tables_of_snapshots_that_overlap_are_given_up(tmp_path):
    image = tmp_path / "a.qcow2"
    with image.open("wb") as file:
        file.truncate(1 << 40)
        fields = (b"QFI\xfb", 2, 0, 0, 16, 1 << 30, 0, 2, 1 << 20, 1 << 16, 1, 60, 1 << 21)
        file.write(struct.pack(">4sIQIIQIIQQIIQ", *fields))
        file.seek(1 << 21)
        for number in range(60):
            file.write(struct.pack(">QI28x", 1 << 26, (4 << 20) - number))
    with pytest.raises(ImageError, match="the L1 tables of the snapshots are too large"):
        ours(image)


@pytest.mark.parametrize("most", [1, 3, 255, 65535, (1 << 64) - 1])
def test_counts_are_exact(most):
    counts, expected = Counts(40, most), [0] * 40
    for first, length, times in [(0, 40, 1), (3, 5, 200), (4, 1, 60), (0, 10, 2), (7, 3, 70_000), (8, 1, 1 << 33)]:
        over = dict(counts.add(first, length, times))
        for cluster in range(first, first + length):
            expected[cluster] += times
            assert over.get(cluster, 0) == max(0, expected[cluster] - most)
            expected[cluster] = min(expected[cluster], most)
    assert [counts[cluster] for cluster in range(40)] == expected
    assert counts.ones(0, 40) == expected.count(1)
