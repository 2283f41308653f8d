"""Images that somebody made to do harm: each ends in one line, soon, and in little memory."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import zstandard

from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_source
from mpconv.formats.qcow2 import header
from mpconv.model.errors import Fatal, ImageError
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import NO_TRUST, Place, Trust
from mpconv.transports import memory
from tests.support.qcow2_bytes import COPIED, Draft, compressed, snapshot_entry

KiB, MiB = 1 << 10, 1 << 20
FORMAT, FEATURES, LUKS, DATA_FILE, BITMAPS = 0xE2792ACA, 0x6803F857, 0x0537BE77, 0x44415441, 0x23852875
SECONDS, KIB = 8, 100 * KiB
"""What one command may take at most: several times what it takes, since others compute at the same time."""
NO_TRUST_AT_ALL = OpenOptions(trust=NO_TRUST)
TRUSTING = OpenOptions(trust=Trust(backing=[""], data_file=True))


@dataclass(frozen=True)
class Ended:
    """How a command ended. `seconds`: of computing, all processes together. `peak`: KiB of its largest process."""

    code: int
    stderr: str
    seconds: float
    peak: int


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""In a small process of its own, since a process that is forked starts with its parent's peak."""


def convert(image: Path) -> Ended:
    """By the command line, to a raw image beside it."""
    command = [sys.executable, "-m", "mpconv", "convert", str(image), f"{image}.raw"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    code, seconds, peak = done.stdout.split()
    return Ended(int(code), done.stderr, float(seconds), int(peak))


def with_backing(name: bytes, fmt: bytes = b"raw") -> Draft:
    return Draft(bits=12, backing_name=name, extensions=((FORMAT, fmt, None),))


def with_data_file(name: bytes | None) -> Draft:
    extensions = () if name is None else ((DATA_FILE, name, None),)
    return Draft(bits=12, incompatible=header.DATA_FILE, extensions=extensions)


def features(*names: tuple[int, int, bytes]) -> tuple[int, bytes, None]:
    return FEATURES, b"".join(struct.pack(">BB46s", *name) for name in names), None


TABLE_OF_ONES = struct.pack(">8Q", *[(1 << 64) - 1] * 8)
SNAPSHOTS = snapshot_entry(3 * 512, 1, b"a")
REFUSED: dict[str, tuple[Draft, str]] = {
    "backing file of the host": (with_backing(b"/etc/passwd"), r"asks for the backing file '/etc/passwd'"),
    "backing file above": (with_backing(b"../../../etc/passwd"), r"asks for the backing file '\.\./"),
    "backing file by json": (with_backing(b'json:{"driver":"raw","file":"/etc/passwd"}'), r"never opened"),
    "backing file by nbd": (with_backing(b"nbd:127.0.0.1:10809"), r"asks for the backing file 'nbd:"),
    "backing file by nfs": (with_backing(b"nfs://127.0.0.1/a/b"), r"asks for the backing file 'nfs:"),
    "backing file with lines": (with_backing(b"a\nmpconv: fine\x1b[2J\xff"), r"file 'a\\nmpconv: fine\\x1b\[2J"),
    "backing name too long": (Draft(bits=12, backing_name=b"a" * 1024), "Backing file name too long"),
    "backing name past the cluster": (Draft(backing_offset=500, backing_length=900), "Backing file name too long"),
    "backing offset past the cluster": (Draft(backing_offset=1 << 56), "Invalid backing file offset"),
    "data file of the host": (with_data_file(b"/etc/passwd"), r"asks for the data file '/etc/passwd'"),
    "data file by json": (with_data_file(b'json:{"driver":"null-co"}'), r"never opened"),
    "data file without a name": (with_data_file(None), r"data file and does not name it"),
    "data file name too long": (with_data_file(b"a" * 1024), r"name of the external data file is too long"),
    "a raw data file that is none": (Draft(autoclear=2), "data-file-raw requires a data file"),
    "version 4": (Draft(version=4), "Unsupported qcow2 version 4"),
    "version of all bits": (Draft(version=0xFFFFFFFF), "Unsupported qcow2 version 4294967295"),
    "clusters of 2 bytes": (Draft(bits=1), r"Unsupported cluster size: 2\^1"),
    "clusters of 4 GiB": (Draft(bits=32), r"Unsupported cluster size: 2\^32"),
    "cluster bits of all bits": (Draft(bits=0xFFFFFFFF), r"Unsupported cluster size: 2\^4294967295"),
    "encrypted": (Draft(crypt=1), "encrypted"),
    "encrypted by LUKS": (Draft(crypt=2, extensions=((LUKS, bytes(16), None),)), "encrypted"),
    "an L1 of 2^35 bytes": (Draft(l1_size=0xFFFFFFFF), "Active L1 table too large"),
    "an L1 past the end": (Draft(l1_size=4 * MiB), "Active L1 table lies beyond the end of the file"),
    "an L1 at 2^60": (Draft(l1_offset=1 << 60), "Active L1 table lies beyond the end of the file"),
    "an L1 at the last byte": (Draft(l1_offset=(1 << 64) - 512), "Active L1 table offset invalid"),
    "an L1 off its boundary": (Draft(l1_offset=3 * 512 + 8), "Active L1 table offset invalid"),
    "an L1 that is too small": (Draft(size=1 << 40), "Image is too big|L1 table is too small"),
    "no L1 at all": (Draft(l1_size=0), "L1 table is too small"),
    "a disk of 2^64 bytes": (Draft(size=(1 << 64) - 512), "Image is too big"),
    "a disk of 2^63 bytes": (Draft(bits=21, size=(1 << 63) - 512), "Image is too big"),
    "refcounts of 2^31 bytes": (Draft(reftable_clusters=0xFFFFFFFF), "Reference count table too large"),
    "refcounts at 2^60": (Draft(reftable_offset=1 << 60), "Reference count table lies beyond the end"),
    "no refcounts": (Draft(reftable_clusters=0), "Image does not contain a reference count table"),
    "refcounts of 128 bits": (Draft(order=7), "may not exceed 64 bits"),
    "refcounts of 2^2^32 bits": (Draft(order=0xFFFFFFFF), "may not exceed 64 bits"),
    "a header of 2^32 bytes": (Draft(header_length=0xFFFFFFFF), "qcow2 header exceeds cluster size"),
    "a header of 520 bytes": (Draft(header_length=520), "qcow2 header exceeds cluster size"),
    "a header of no bytes": (Draft(header_length=0), "qcow2 header too short"),
    "an extension of 2^32 bytes": (Draft(extensions=((1, b"", 0xFFFFFFFF),)), "Header extension too large"),
    "an extension past the cluster": (Draft(extensions=((1, b"", 400),)), "Header extension too large"),
    "the last extension of 2^32 bytes": (Draft(extensions=((0, b"", 0xFFFFFFFF),)), "Header extension too large"),
    "a backing format too long": (Draft(extensions=((FORMAT, b"a" * 64, None),)), "ext_backing_format: len too large"),
    "an unknown feature": (Draft(incompatible=1 << 40), "Unknown incompatible feature: 10000000000"),
    "all features": (Draft(incompatible=(1 << 64) - 1), "Unsupported qcow2 feature"),
    "an unknown feature with a name": (
        Draft(incompatible=1 << 7, extensions=(features((0, 7, b"time travel"), (1, 7, b"no")),)),
        r"feature\(s\): time travel$",
    ),
    "an unknown feature with a wild name": (
        Draft(incompatible=1 << 7, extensions=(features((0, 7, b"\n\x1b]0;\xff\xfe\xe2\x80\xae" + b"x" * 46)),)),
        r"feature\(s\): \\n\\x1b\]0;",
    ),
    "a feature table of half an entry": (
        Draft(incompatible=1 << 7, extensions=((FEATURES, b"\0\7abc", None),)),
        "Unknown incompatible feature: 80",
    ),
    "zstd without its bit": (Draft(compression=1), "if and only if"),
    "the bit without zstd": (Draft(incompatible=header.COMPRESSION), "if and only if"),
    "an unknown compression": (
        Draft(incompatible=header.COMPRESSION, compression=200),
        "unknown compression type: 200",
    ),
    "subclusters of 16 bytes": (Draft(incompatible=header.EXTENDED_L2), "Extended L2 entries are only supported"),
    "65537 snapshots": (Draft(snapshots=65537, snapshots_offset=5 * 512), "Snapshot table too large"),
    "2^32 snapshots": (Draft(snapshots=0xFFFFFFFF, snapshots_offset=5 * 512), "Snapshot table too large"),
    "snapshots past the end": (Draft(snapshots=1, snapshots_offset=1 << 40), "Snapshot table lies beyond the end"),
    "snapshots off their boundary": (Draft(snapshots=1, snapshots_offset=1000), "Snapshot table offset invalid"),
    "a snapshot table of ones": (
        Draft(snapshots=1, snapshots_offset=3072, at={3072: TABLE_OF_ONES}),
        "Too much extra metadata in snapshot table entry",
    ),
    "a snapshot table cut off": (
        Draft(snapshots=20, snapshots_offset=3072, at={3072: snapshot_entry(0, 1, b"a" * 470)}),
        "snapshot table is cut off",
    ),
    "snapshots with endless names": (
        Draft(
            snapshots=500,
            snapshots_offset=1 << 20,
            at={(1 << 20): b"".join(snapshot_entry(0, 1, b"a" * 65535) for _ in range(500))},
        ),
        "names of the snapshots are too long",
    ),
    "one L2 table twice": (Draft(size=512 * 512, l1_size=8, l1=(0, 2048, 0, 2048)), "names one L2 table twice"),
    "one L2 table for all": (
        Draft(size=64 * 512 * MiB, l1_size=MiB, l1_offset=8 * MiB, at={8 * MiB: struct.pack(">Q", 2048) * MiB}),
        "names one L2 table twice|L1 table names 1048576 L2 tables, but the file has",
    ),
    "an L2 table at 2^56": (Draft(l1=((1 << 56) - 512,)), "L2 table at byte .* lies beyond the end"),
    "an L2 table off its boundary": (Draft(bits=12, l1=(0x4200,)), "L2 table offset 0x4200 unaligned"),
    "a cluster at 2^56": (Draft(l2=((1 << 56) - 512,)), "data lies beyond the end"),
    "a cluster off its boundary": (Draft(bits=12, l2=(0x5200,)), "Cluster allocation offset 0x5200 unaligned"),
    "a cluster off its boundary behind a good one": (
        Draft(bits=12, size=1 << 15, l2=(COPIED | 0x5000, 1, 0x6200)),
        "Cluster allocation offset 0x6200 unaligned",
    ),
    "a zero cluster in version 2": (Draft(version=2, l2=(1,)), "Zero cluster entry found in pre-v3 image"),
    "a compressed cluster at the end of all": (Draft(l2=((1 << 63) - 1,)), "beyond the end"),
    "a compressed cluster of text": (Draft(l2=(compressed(5 * 512, 512, 9),)), "compressed cluster is damaged"),
    "a subcluster both zero and there": (
        Draft(bits=14, size=1 << 14, incompatible=header.EXTENDED_L2, l2=(COPIED | 5 << 14, 1 << 32 | 1)),
        "Invalid subcluster bitmap 0x100000001",
    ),
    "a subcluster of nowhere": (
        Draft(bits=14, size=1 << 14, incompatible=header.EXTENDED_L2, l2=(0, 1)),
        "Invalid subcluster bitmap 0x1",
    ),
}


def zstd_of(content: bytes, **parameters: object) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(content)


def deflated(content: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -12)
    return stream.compress(content) + stream.flush()


WIDE_WINDOW = struct.pack("<IBB", 0xFD2FB528, 0x00, 0xF8) + b"\x01\0\0"
"""A frame whose window is 2 TiB."""
HUGE_CONTENT = struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0x50, 1 << 62) + zstd_of(b"")[5:]
SKIPPED = struct.pack("<II", 0x184D2A50, 0) * 100
BOMBS = {
    "deflate": (0, deflated(bytes(300 * MiB))),
    "zstd": (1, zstd_of(bytes(300 * MiB))),
}
DAMAGED = {
    "a window of 2 TiB": (1, WIDE_WINDOW),
    "a content of 4 EiB": (1, HUGE_CONTENT),
    "frames to skip alone": (1, SKIPPED),
    "a frame of nothing": (1, zstd_of(b"") * 30),
    "deflate of nothing": (0, deflated(b"")),
    "deflate of less": (0, deflated(bytes(65535))),
    "zstd of less": (1, zstd_of(bytes(65535))),
}


def compressed_image(compression: int, stored: bytes, told: int | None = None) -> Draft:
    """Its clusters of 64 KiB are all the same compressed one."""
    entry = compressed(5 << 16, min(told or len(stored), 65536), 16)
    return Draft(
        bits=16,
        size=64 << 16,
        incompatible=header.COMPRESSION if compression else 0,
        compression=compression,
        l2=(entry,) * 64,
        at={5 << 16: stored[:65536]},
    )


async def read_all(image: Image, most: int = 64 * MiB) -> int:
    """Status and bytes from the beginning on, as a copy does; how many bytes."""
    at = 0
    while at < min(image.size, most):
        extents = await image.block_status(at, image.size - at)
        assert extents[0].start == at and extents[-1].end <= image.size
        for extent in extents:
            if extent.kind is not Kind.ZERO:
                for start in range(extent.start, min(extent.end, most), MiB):
                    await image.read_into(start, memoryview(bytearray(min(MiB, extent.end - start))))
        at = extents[-1].end
    return at


async def open_and_read(place: Place, how: OpenOptions) -> int:
    image = await open_source([place], how)
    try:
        return await read_all(image)
    finally:
        await image.close()


def read(path: Path, how: OpenOptions = NO_TRUST_AT_ALL) -> int:
    """The same in this process, which must neither take long nor get much memory for it."""
    began = time.process_time()
    tracemalloc.start()
    try:
        return asyncio.run(open_and_read(Place(url=str(path)), how))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 48 * MiB and time.process_time() - began < SECONDS


@pytest.mark.parametrize("name", REFUSED)
def test_each_is_refused_in_one_line_soon_and_in_little_memory(tmp_path: Path, name: str):
    draft, words = REFUSED[name]
    with pytest.raises(ImageError) as refused:
        read(draft.write(tmp_path / "image.qcow2"))
    told = str(refused.value)
    assert re.search(words, told) and "\n" not in told
    assert told.encode("ascii", "backslashreplace").decode().isprintable()


BY_COMMAND = [
    "backing file of the host", "backing file with lines", "data file of the host", "all features",
    "one L2 table for all", "snapshots with endless names", "a cluster at 2^56", "a compressed cluster of text",
]  # fmt: skip


@pytest.mark.parametrize("name", BY_COMMAND)
def test_the_command_line_says_so_in_one_line(tmp_path: Path, name: str):
    draft, words = REFUSED[name]
    ended = convert(draft.write(tmp_path / "image.qcow2"))
    assert ended.code == 1
    assert ended.stderr.startswith("mpconv: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.isascii() and ended.stderr[:-1].isprintable() and re.search(words, ended.stderr[:-1])
    assert ended.seconds < SECONDS and ended.peak < KIB, ended


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_cut_off_at_any_byte_of_its_header(version: int):
    """The tables are refused before they are read; a header that is whole is the only one that is taken."""
    whole = Draft(version=version, extensions=(features((0, 0, b"dirty bit")),)).bytes()

    async def run() -> None:
        for length in range(513):
            url = f"memory:cut{version}-{length}"
            memory._stores[url] = whole[:length]
            with pytest.raises(Fatal) as refused:
                await open_and_read(Place(url=url, format="qcow2"), NO_TRUST_AT_ALL)
            assert "\n" not in str(refused.value)
            del memory._stores[url]

    asyncio.run(run())


def test_65536_snapshots_with_the_longest_names_that_qemu_makes(tmp_path: Path):
    entry = snapshot_entry(3 * 512, 1, "\u00e9".encode() * 126)
    table = entry * 65536
    draft = Draft(snapshots=65536, snapshots_offset=1 << 20, at={1 << 20: table})
    ended = convert(draft.write(tmp_path / "image.qcow2"))
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.peak < KIB, ended


@pytest.mark.parametrize("target", [0, 1, 3, 4])
@pytest.mark.parametrize("level", ["l1", "l2"])
def test_tables_that_point_at_themselves_are_garbage_and_end(tmp_path: Path, level: str, target: int):
    """At the header, the refcount table, the L1 and the L2."""
    draft = replace(Draft(), **{level: (COPIED | target * 512,) * (1 if level == "l1" else 64)})
    try:
        assert read(draft.write(tmp_path / "image.qcow2")) == draft.size
    except ImageError as error:
        assert level == "l1" and "\n" not in str(error)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_fills_one_cluster_and_no_more(tmp_path: Path, name: str):
    compression, stored = BOMBS[name]
    path = compressed_image(compression, stored).write(tmp_path / "image.qcow2")
    assert read(path) == 64 << 16
    ended = convert(path)
    assert (ended.code, ended.stderr) == (0, "")
    assert (tmp_path / "image.qcow2.raw").read_bytes() == bytes(64 << 16)
    assert ended.seconds < SECONDS and ended.peak < KIB, ended


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_streams_are_refused(tmp_path: Path, name: str):
    compression, stored = DAMAGED[name]
    path = compressed_image(compression, stored).write(tmp_path / "image.qcow2")
    with pytest.raises(ImageError, match="compressed cluster is damaged"):
        read(path)


def test_a_backing_chain_that_is_a_loop(tmp_path: Path):
    for name, below in ((b"a", b"b"), (b"b", b"c"), (b"c", b"a")):
        with_backing(below, b"qcow2").write(tmp_path / name.decode())
    (tmp_path / "own").symlink_to("itself")
    with_backing(b"own", b"qcow2").write(tmp_path / "itself")
    for name in ("a", "itself"):
        with pytest.raises(ImageError, match="the chain of backing files is a loop"):
            read(tmp_path / name, TRUSTING)


def test_200_backing_files_are_read_and_one_more_is_not(tmp_path: Path):
    """Clusters of none but the lowest one are there."""
    Draft(bits=12, size=1 << 16).write(tmp_path / "0")
    for level in range(1, 202):
        replace(with_backing(str(level - 1).encode(), b"qcow2"), size=1 << 16, l2=(0,)).write(tmp_path / str(level))

    async def first_bytes() -> bytes:
        image = await open_source([Place(url=str(tmp_path / "200"))], TRUSTING)
        buffer = bytearray(4096)
        await read_all(image)
        await image.read_into(0, memoryview(buffer))
        await image.close()
        return bytes(buffer)

    assert asyncio.run(first_bytes()) == b"\xda" * 4096
    with pytest.raises(ImageError, match="more than 200 backing files"):
        read(tmp_path / "201", TRUSTING)


def test_a_link_or_a_name_that_leads_out_of_what_is_allowed(tmp_path: Path):
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret".ljust(4096))
    (inside / "link").symlink_to("../secret")
    (inside / "folder").symlink_to("..")
    (tmp_path / "inside-not").write_bytes(bytes(4096))
    for name in ("link", "folder/secret", "../secret", "deep/../../secret", "/etc/passwd", f"{tmp_path}/inside-not",
                 "file:/etc/passwd", "FILE:../secret"):  # fmt: skip
        path = with_backing(name.encode()).write(inside / "image.qcow2")
        with pytest.raises(ImageError, match="lies in none of the directories"):
            read(path, TRUSTING)
        with pytest.raises(ImageError, match="lies in none of the directories"):
            read(path, OpenOptions(trust=Trust(backing=["", str(inside / "deep")])))
    (inside / "image.qcow2").unlink()
    assert (
        read(with_backing(b"link").write(inside / "image.qcow2"), OpenOptions(trust=Trust(backing=[str(tmp_path)]))) > 0
    )


@pytest.mark.parametrize(
    "name",
    ["nbd:127.0.0.1:1", "nbd+unix:///a?socket=/b", "https://127.0.0.1/a", "ssh://a/b", "rbd:pool/a", "vvfat:/etc"],
)
def test_protocols_that_nobody_serves_are_refused_with_all_trust(tmp_path: Path, name: str):
    for draft in (with_backing(name.encode()), with_data_file(name.encode())):
        with pytest.raises(Fatal) as refused:
            read(draft.write(tmp_path / "image.qcow2"), TRUSTING)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nfs://127.0.0.1:1/a/b", "iscsi://127.0.0.1:1/a/0", "memory:host", "null:"])
def test_other_stores_are_not_where_the_image_lies(tmp_path: Path, name: str):
    with pytest.raises(ImageError, match="lies in none of the directories"):
        read(with_backing(name.encode()).write(tmp_path / "image.qcow2"), TRUSTING)


def test_a_fifo_below_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for draft in (with_backing(b"fifo"), with_data_file(b"fifo")):
        with pytest.raises(Fatal, match="neither a regular file nor a block device"):
            read(draft.write(tmp_path / "image.qcow2"), TRUSTING)


def test_json_names_are_refused_with_all_trust(tmp_path: Path):
    name = b'json:{"driver":"file","filename":"/etc/passwd"}'
    for draft in (with_backing(name), with_data_file(name)):
        with pytest.raises(ImageError, match="json: names inside images are never opened"):
            read(draft.write(tmp_path / "image.qcow2"), TRUSTING)


def test_a_backing_file_has_no_say_of_its_own(tmp_path: Path):
    """What lies below is asked the same questions."""
    with_backing(b"/etc/passwd").write(tmp_path / "middle")
    path = with_backing(b"middle", b"qcow2").write(tmp_path / "top")
    with pytest.raises(ImageError, match="asks for the backing file '/etc/passwd'"):
        read(path, TRUSTING)


def test_an_image_without_the_files_it_is_made_of_is_not_read_as_something_else(tmp_path: Path):
    """Without a word on trust a place has to name them: else the data file's bytes would be the image's own."""
    for draft, what in ((with_data_file(b"data"), "data file"), (with_backing(b"base"), "backing file")):
        with pytest.raises(ImageError, match=f"asks for the {what} '.*', and nobody opened it"):
            read(draft.write(tmp_path / "image.qcow2"), OpenOptions())


def test_an_empty_disk_whose_l1_may_lie_anywhere(tmp_path: Path):
    """It has no bytes, so nothing is read there."""
    path = Draft(size=0, l1_size=0, l1_offset=1 << 60).write(tmp_path / "image.qcow2")
    assert read(path) == 0


def test_an_endless_disk_without_tables_is_one_extent(tmp_path: Path):
    """4 million L1 entries of no table each, told in one go."""
    draft = Draft(size=32 * KiB * 4 * MiB, l1_size=4 * MiB, l1_offset=8 * MiB, file_size=40 * MiB)

    async def extents() -> list[Extent]:
        image = await open_source([Place(url=str(draft.write(tmp_path / "image.qcow2")))], NO_TRUST_AT_ALL)
        found = await image.block_status(0, image.size)
        await image.close()
        return found

    began = time.process_time()
    assert asyncio.run(extents()) == [Extent(0, draft.size, Kind.ZERO)]
    assert time.process_time() - began < SECONDS


def test_a_read_that_is_refused_halfway_leaves_nothing_behind(tmp_path: Path):
    """No coroutine that nobody awaits: the interpreter would tell it on stderr, as a second line."""
    draft, words = REFUSED["a cluster off its boundary behind a good one"]

    async def refusal() -> str:
        image = await open_source([Place(url=str(draft.write(tmp_path / "image.qcow2")))], NO_TRUST_AT_ALL)
        try:
            await image.read_into(0, memoryview(bytearray(3 << 12)))
        except ImageError as error:
            return str(error)
        finally:
            await image.close()
        return ""

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert re.search(words, asyncio.run(refusal()))
        gc.collect()
    assert [str(one.message) for one in told if "never awaited" in str(one.message)] == []
