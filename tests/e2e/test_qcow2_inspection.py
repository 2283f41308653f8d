"""info, map, measure and compare of qcow2 images beside qemu-img 7.2's, byte for byte."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import mpconv
from tests.e2e.test_info_map_measure import OURS, THEIRS, outcome, same, sparse

KiB, MiB, TiB = 1 << 10, 1 << 20, 1 << 40
ALLOWED = ("--allow-backing", "--allow-data-file")


@pytest.fixture(autouse=True)
def _in_its_directory(tmp_path, monkeypatch):
    """Images are named without a directory, as they name each other."""
    monkeypatch.chdir(tmp_path)


def run(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=60)


def create(name: str, size: object, *options: str, backing: str | None = None) -> str:
    below = ["-b", backing, "-F", "raw" if backing.endswith(".raw") else "qcow2"] if backing else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", ",".join(options)] if options else []), *below, name, size)
    return name


def do(name: str, *commands: str) -> None:
    run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), name)


WRITES = ("write 0 70k", "write 300k 4k", "write -z 448k 130k", "write 900k 64k", "discard 0 64k", "write 960k 33k")


def written(*options: str, size: object = "1M") -> str:
    do(create("a.qcow2", size, *options), *WRITES)
    return "a.qcow2"


def chain(*sizes: object, options: tuple[str, ...] = (), base: str | None = None) -> str:
    """Layers from the lowest up, each with some of its own."""
    below = base
    for number, size in enumerate(sizes):
        below = create(f"{number}.qcow2", size, *options, backing=below)
        do(below, f"write {number * 100}k 96k", f"write -z {number * 100 + 64}k 64k", f"write {number * 3}k 2k")
    assert below is not None
    return below


def patched(name: str, at: int, bits: int) -> str:
    """One byte of the file with more bits set."""
    found = bytearray(Path(name).read_bytes())
    found[at] |= bits
    Path(name).write_bytes(found)
    return name


def compressed(*options: str) -> str:
    do(create("plain.qcow2", "1M"), "write 0 200k", "write 500k 64k")
    run(
        "qemu-img",
        "convert",
        "-c",
        "-O",
        "qcow2",
        *(["-o", ",".join(options)] if options else []),
        "plain.qcow2",
        "c.qcow2",
    )
    return "c.qcow2"


def with_snapshots() -> str:
    name = written()
    run("qemu-img", "snapshot", "-c", "first", name)
    do(name, "write 100k 300k")
    run("qemu-img", "snapshot", "-c", "ä name that is longer than its column", name)
    return name


def with_bitmaps() -> str:
    name = written()
    run("qemu-img", "bitmap", "--add", name, "one")
    run("qemu-img", "bitmap", "--add", "--disable", "-g", "512", name, 'an"other ä')
    return name


def with_a_data_file(raw: str) -> str:
    return written("data_file=d.data", f"data_file_raw={raw}")


def overlay_without_a_map_of_its_own() -> str:
    """An extended L2 entry whose cluster is allocated and mostly left to the backing file; then to nothing."""
    chain("1M", base=None)
    create("top.qcow2", "2M", "extended_l2=on", backing="0.qcow2")
    do("top.qcow2", "write 2k 2k", "write 1500k 2k", "write -z 70k 2k")
    return "top.qcow2"


IMAGES: dict[str, Callable[[], str]] = {
    "empty": lambda: create("a.qcow2", 0),
    "one sector": lambda: create("a.qcow2", 512),
    "version 2": lambda: written("compat=0.10"),
    "version 3": written,
    "clusters of a sector": lambda: written("cluster_size=512"),
    "clusters of 2 MiB": lambda: written("cluster_size=2M", size="5M"),
    "odd size": lambda: written("cluster_size=4k", size=1_048_064),
    "extended_l2": lambda: written("extended_l2=on"),
    "extended_l2, the smallest": lambda: written("extended_l2=on,cluster_size=16k", "refcount_bits=1"),
    "refcounts of 64 bits, lazy": lambda: written("refcount_bits=64,lazy_refcounts=on"),
    "zlib": compressed,
    "zstd": lambda: compressed("compression_type=zstd,cluster_size=16k"),
    "snapshots": with_snapshots,
    "bitmaps": with_bitmaps,
    "a data file": lambda: with_a_data_file("off"),
    "a raw data file": lambda: with_a_data_file("on"),
    "dirty": lambda: patched(written("lazy_refcounts=on"), 79, 1),
    "corrupt": lambda: patched(written(), 79, 2),
    "metadata": lambda: written("preallocation=metadata"),
    "metadata, subclusters": lambda: written("preallocation=metadata,extended_l2=on"),
    "metadata, refcounts of 2 bits": lambda: written("preallocation=metadata,refcount_bits=2"),
    "metadata, nothing written": lambda: create("a.qcow2", 1_000_448, "preallocation=metadata,refcount_bits=32"),
    "falloc": lambda: written("preallocation=falloc"),
    "full": lambda: written("preallocation=full"),
    "one layer below": lambda: chain("1M", "1M"),
    "a larger overlay": lambda: chain("600k", "1M"),
    "a smaller overlay": lambda: chain("1M", "600k"),
    "three layers below, sizes mixed": lambda: chain("900k", "300k", "1M", "800k"),
    "subclusters all the way": lambda: chain("900k", "300k", "1M", "800k", options=("extended_l2=on",)),
    "subclusters left to nothing": overlay_without_a_map_of_its_own,
    "over a raw image": lambda: chain(
        "300k", "1M", base=sparse(Path("b.raw"), 100_700, (0, 5000), (99_000, 1700)).name
    ),
}


def check(*commands: tuple[object, ...]) -> None:
    """Both programs do alike; ours may open what the image names."""
    for command, *arguments in commands:
        ours, theirs = outcome(OURS, [command, *ALLOWED, *arguments]), outcome(THEIRS, [command, *arguments])
        assert ours == theirs, (command, *arguments)


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image(kind):
    image = IMAGES[kind]()
    check(
        *((command, "--output=json", image) for command in ("info", "map", "measure")),
        ("info", "--backing-chain", "--output=json", image),
        ("measure", "-O", "qcow2", "--output=json", image),
        ("info", "--backing-chain", image),
        ("map", image),
        ("measure", image),
    )
    check(
        ("measure", "-O", "qcow2", "-o", "cluster_size=16k,extended_l2=on,refcount_bits=1", image),
        ("map", "--output=json", "-s", "123456", "-l", "500001", image),
    )


def test_the_part_of_the_map_that_was_asked_for():
    image = chain("600k", "1M")
    for where in ("-s 1M", "-s 0 -l 0", "-s 1048575", "-s 614399 -l 2", "-s 64k -l 64k", "-s 2M", "-l 7E"):
        for output in ("human", "json"):
            check(("map", "-f", "qcow2", f"--output={output}", *where.split(), image))


def test_a_huge_image():
    create("a.qcow2", 8 * TiB)
    check(("map", "--output=json", "a.qcow2"), ("measure", "-O", "qcow2", "a.qcow2"), ("map", "a.qcow2"))


def test_measuring_a_size_alone():
    sizes = ("0", "1", "1000001", "1T", "64E", "7E", "8E")
    options = (
        "", "cluster_size=512", "cluster_size=2M,refcount_bits=64", "preallocation=falloc", "preallocation=metadata",
        "extended_l2=on,cluster_size=16k", "compat=0.10", "backing_file=x,backing_fmt=raw", "encryption=off,nocow=on",
    )  # fmt: skip
    for size in sizes[:4]:
        for text in options:
            same("measure", "-O", "qcow2", "--size", size, *(["-o", text] if text else []))
    for size in sizes[4:]:
        same("measure", "-O", "qcow2", "--size", size)
        same("measure", "-O", "qcow2", "--size", size, "-o", "cluster_size=2M", "--output=json")


@pytest.mark.parametrize(
    "text",
    [
        "cluster_size=7", "cluster_size=4G", "compat=9", "compat=v3", "refcount_bits=3", "refcount_bits=-1",
        "compat=0.10,refcount_bits=1", "preallocation=x", "extended_l2=on,cluster_size=4k", "cluster_size=x",
        "compat=0.10,extended_l2=on,cluster_size=7", "lazy_refcounts=on,compat=0.10", "refcount_bits=3,compat=9",
    ],
)  # fmt: skip
def test_options_that_cannot_be(text):
    ours, theirs = (
        outcome(program, ["measure", "-O", "qcow2", "--size", "1M", "-o", text]) for program in (OURS, THEIRS)
    )
    assert ours[:2] == theirs[:2] and theirs[2].startswith(ours[2])


def test_measuring_for_other_sources():
    raw = sparse(Path("a.raw"), 3 * MiB + 700, (0, 1), (MiB - 1, 2), (3 * MiB, 700))
    with_snapshots()
    check(
        ("measure", "-O", "qcow2", "-f", "raw", raw),
        ("measure", "-O", "qcow2", "-f", "raw", "-o", "cluster_size=4k", "--output=json", raw),
        ("measure", "-O", "qcow2", "-o", "backing_file=b.qcow2", raw),
        ("measure", "-O", "qcow2", "-o", "size=7E", raw),
        ("measure", "-O", "qcow2", "-l", "first", "a.qcow2"),
        ("measure", "-O", "qcow2", "-l", "2", "a.qcow2"),
        ("measure", "-l", "snapshot.name=first", "a.qcow2"),
        ("measure", "-O", "qcow2", "-l", "missing", "a.qcow2"),
        ("measure", "-O", "qcow2", "-o", "compat=0.10", with_bitmaps()),
    )


def test_info_opens_nothing_else():
    """A backing file that is not there, or that is none of ours to open, is named all the same."""
    base = create("b.qcow2", "1M")
    for name in ("/etc/hostname", "../b.qcow2", "file:b.qcow2", "nbd://host/x", "json:{}"):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "a.qcow2", "1M")
        for image in ("a.qcow2", Path("a.qcow2").absolute(), f"file:{Path('a.qcow2').absolute()}"):
            same("info", image)
            same("info", "--output=json", image)
    create("d.qcow2", "1M", "data_file=d.data")
    Path("d.data").unlink()
    same("info", "d.qcow2")
    create("a.qcow2", "1M", backing=base)
    for command in (["map"], ["measure"], ["info", "--backing-chain"], ["measure", "-O", "qcow2"]):
        code, output, error = outcome(OURS, [*command, "a.qcow2"])
        assert (code, output) == (1, b"") and "'b.qcow2'" in error and "--allow-backing" in error
    code, _, error = outcome(OURS, ["info", "--backing-chain", "--allow-backing=/nowhere", "a.qcow2"])
    assert code == 1 and "lies in none of the directories" in error


def test_a_password_in_the_name_of_a_backing_file_is_not_shown():
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "iscsi://u%pw-1@h/t/0", "-F", "raw", "a.qcow2", "1M")
    for output in ("human", "json"):
        done = mpconv("info", f"--output={output}", "a.qcow2")
        assert "iscsi://u@h/t/0" in done.stdout and "pw-1" not in done.stdout + done.stderr


def test_a_chain_that_is_a_loop():
    create("a.qcow2", "1M")
    run("qemu-img", "rebase", "-u", "-b", "a.qcow2", "-F", "qcow2", "a.qcow2")
    check(("info", "--backing-chain", "a.qcow2"))


BITMAPS_EXTENSION = b"\x23\x85\x28\x75"
EXTENSION, ENTRY = "the header's extension for bitmaps", "the first entry of the directory"
BROKEN_BITMAPS = {  # where, at which byte, what is written there
    "none": (EXTENSION, 0, bytes(4)),
    "more than there are": (EXTENSION, 0, (3).to_bytes(4)),
    "fewer than there are": (EXTENSION, 0, (1).to_bytes(4)),
    "too many": (EXTENSION, 0, (65536).to_bytes(4)),
    "an empty directory": (EXTENSION, 8, bytes(8)),
    "a large directory": (EXTENSION, 8, (1 << 30).to_bytes(8)),
    "a directory between clusters": (EXTENSION, 16, (65544).to_bytes(8)),
    "no table": (ENTRY, 0, bytes(8)),
    "a table between clusters": (ENTRY, 0, (65544).to_bytes(8)),
    "a table without entries": (ENTRY, 8, bytes(4)),
    "a table too large": (ENTRY, 8, (1 << 31).to_bytes(4)),
    "unknown flags": (ENTRY, 12, (16).to_bytes(4)),
    "another kind": (ENTRY, 16, b"\3"),
    "a bit for too much": (ENTRY, 17, b"\40"),
    "a bit for too little": (ENTRY, 17, b"\10"),
    "a name beyond the directory": (ENTRY, 18, b"\3\377"),
    "extra data": (ENTRY, 20, (8).to_bytes(4)),
}


@pytest.mark.parametrize("where", BROKEN_BITMAPS)
@pytest.mark.parametrize("command", ["info", "check"])
def test_a_bitmap_directory_that_is_broken(command, where):
    name = with_bitmaps()
    found = bytearray(Path(name).read_bytes())
    extension = found.index(BITMAPS_EXTENSION) + 8
    place, at, spoilt = BROKEN_BITMAPS[where]
    at += extension if place == EXTENSION else int.from_bytes(found[extension + 16 : extension + 24])
    found[at : at + len(spoilt)] = spoilt
    Path(name).write_bytes(found)
    ours, theirs = outcome(OURS, [command, name]), outcome(THEIRS, [command, name])
    assert ours == theirs
    assert ours[0] == 1


def test_a_bitmap_directory_beyond_the_end():
    name = with_bitmaps()
    found = bytearray(Path(name).read_bytes())
    at = found.index(BITMAPS_EXTENSION) + 8
    found[at + 16 : at + 24] = (1 << 40).to_bytes(8)
    Path(name).write_bytes(found)
    code, output, error = outcome(OURS, ["info", name])
    assert (code, output) == (1, b"") and error.startswith("Could not open 'a.qcow2': Bitmap directory lies beyond")


def pair(seed: int) -> tuple[str, str]:
    """Two images with the same guest bytes, or nearly."""
    rng = random.Random(seed)
    chain("600k", "1M")
    do("1.qcow2", f"write -P {seed + 1} {rng.randrange(1900) * 512} 4k")
    run("qemu-img", "convert", "-O", rng.choice(["raw", "qcow2"]), "1.qcow2", "copy")
    return "1.qcow2", "copy"


def compare_alike(*arguments: object) -> tuple[int, bytes, str]:
    ours, theirs = (
        outcome(OURS, ["compare", *ALLOWED, *arguments]),
        outcome(THEIRS, ["compare", *arguments]),
    )
    assert ours == theirs, arguments
    return ours


@pytest.mark.parametrize("seed", range(3))
def test_compare(seed):
    first, second = pair(seed)
    assert compare_alike(first, second)[0] == 0
    compare_alike("-s", first, second)
    run("qemu-io", *(["-f", "qcow2"] if seed % 2 else []), "-c", f"write -P 99 {700 + seed * 77}k 1k", first)
    assert compare_alike(first, second)[0] == 1
    compare_alike("-s", second, first)
    run("qemu-img", "resize", "-q", "--shrink", first, "800k")
    compare_alike(second, first)
    compare_alike("-s", second, first)


def test_compare_strictly():
    """The status counts: what holds a zero, where data lies, and where QEMU's questions end."""
    make = (
        ("same", lambda name: do(create(name, "2M"), "write 0 64k", "write -z 128k 64k")),
        ("zero", lambda name: do(create(name, "2M"), "write 0 64k", "write -z 128k 64k", "write -z 192k 64k")),
        ("compressed", lambda name: do(create(name, "2M"), "write -c 0 64k", "write -z 128k 64k")),
        ("prepared", lambda name: do(create(name, "2M", "preallocation=metadata"), "write 0 64k")),
        ("larger", lambda name: create(name, "3M")),
    )
    for name, made in make:
        made(name)
    for name, _ in make:
        compare_alike("-s", "same", name)
    run("qemu-img", "convert", "-O", "raw", "same", "raw")
    compare_alike("-s", "same", "raw")
    run("qemu-img", "convert", "-S", "0", "-O", "raw", "same", "full")
    run("qemu-img", "convert", "-S", "0", "-O", "qcow2", "same", "filled")
    assert compare_alike("-s", "full", "filled")[0] == 0
    for one, other in (("65536", "2M"), ("2M", "2M")):
        create("one", "1G", f"cluster_size={one}")
        create("other", "1G", f"cluster_size={other}")
        compare_alike("-s", "one", "other")


def test_over_nfs(nfs):
    create(str(nfs.path("base.qcow2")), "1M")
    do(str(nfs.path("base.qcow2")), "write 0 100k")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", nfs.path("top.qcow2"), "2M")
    do(str(nfs.path("top.qcow2")), "write 64k 10k", "write -z 1M 100k")
    run("sync", nfs.path("base.qcow2"), nfs.path("top.qcow2"))  # how much is allocated is certain only then
    local, remote = (
        [
            json.loads(mpconv("map", *ALLOWED, "--output=json", image).stdout),
            info_of(image),
            info_of(image, "base.qcow2"),
        ]
        for image in (nfs.path("top.qcow2"), nfs.url("top.qcow2"))
    )
    theirs = json.loads(outcome(THEIRS, ["map", "--output=json", nfs.path("top.qcow2")])[1])
    assert local == remote and local[0] == theirs


def info_of(image: object, below: str | None = None) -> dict[str, object]:
    """Without what differs by the way to it."""
    done = mpconv("info", "--backing-chain", *ALLOWED, "--output=json", image)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)[0 if below is None else 1]
    assert f"/{below or 'top.qcow2'}" in facts.pop("filename")
    facts.pop("full-backing-filename", None)
    return facts


def test_over_iscsi(lun):
    url = lun(4 * MiB).url
    run("qemu-img", "create", "-q", "-f", "qcow2", url, "2M")
    run("qemu-io", "-f", "qcow2", "-c", "write 64k 100k", "-c", "write -z 1M 100k", url)
    for arguments in (
        ["map", "--output=json"],
        ["measure", "-O", "qcow2"],
        ["measure", "-O", "qcow2", "--output=json"],
    ):
        same(*arguments, "-f", "qcow2", url)
    ours, theirs = (json.loads(outcome(program, ["info", "--output=json", url])[1]) for program in (OURS, THEIRS))
    assert ours.pop("filename") == url and theirs.pop("filename") and ours == theirs
