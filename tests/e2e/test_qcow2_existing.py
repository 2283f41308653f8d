"""qcow2 images that others made, as targets that are there already (`-n`); qemu-img judges what became of them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import mpconv
from tests.support.qcow2_bytes import MAGIC

KiB, MiB = 1 << 10, 1 << 20
CLUSTER = 64 * KiB
COPIED = 1 << 63
PLACE = 0x00FF_FFFF_FFFF_FE00
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def io(image: Path, *commands: str) -> None:
    run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), image)


def made(path: Path, size: int, *options: str) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", *(word for one in options for word in ("-o", one)), path, size)
    return path


def noise(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def word(image: bytes | bytearray, at: int) -> int:
    found: int = struct.unpack_from(">Q", image, at)[0]
    return found


def patched(path: Path, change: Callable[[bytearray], None]) -> Path:
    image = bytearray(path.read_bytes())
    change(image)
    path.write_bytes(image)
    return path


def tables(image: bytes | bytearray) -> tuple[int, int, int]:
    """Where the L1, the first L2 and the first refcount block lie."""
    l1 = word(image, 40)
    return l1, word(image, l1) & PLACE, word(image, word(image, 48))


def put(image: bytearray, at: int, value: int, width: str = "Q") -> None:
    struct.pack_into(f">{width}", image, at, value)


def copied(source: Path, target: Path, *words: object) -> None:
    done = mpconv("convert", "-n", "-f", "raw", "-O", "qcow2", *words, source, target)
    assert (done.returncode, done.stderr) == (0, "")


def refused(source: Path, target: Path, words: str) -> None:
    before = target.read_bytes()
    done = mpconv("convert", "-n", "-f", "raw", "-O", "qcow2", source, target)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert target.read_bytes() == before


def equal(source: Path, target: Path) -> None:
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, target)


def sound(target: Path) -> None:
    run("qemu-img", "check", target)


def test_a_cluster_that_two_entries_share_one_of_which_says_so(tmp_path: Path):
    target = made(tmp_path / "t.qcow2", 4 * CLUSTER)
    io(target, f"write -P 1 0 {2 * CLUSTER}")

    def share(image: bytearray) -> None:
        _, l2, _ = tables(image)
        put(image, l2 + 16, word(image, l2) & ~COPIED)

    patched(target, share)
    source = noise(tmp_path / "s.raw", 4 * CLUSTER)
    copied(source, target)
    equal(source, target)
    sound(target)


def test_what_is_shared_outside_of_the_copy_keeps_its_bytes(tmp_path: Path):
    target = made(tmp_path / "t.qcow2", 4 * CLUSTER)
    io(target, f"write -P 1 0 {2 * CLUSTER}")

    def share(image: bytearray) -> None:
        _, l2, _ = tables(image)
        put(image, l2 + 16, word(image, l2) & ~COPIED)

    patched(target, share)
    source = noise(tmp_path / "s.raw", CLUSTER)
    copied(source, target)
    run("qemu-img", "convert", "-O", "raw", target, tmp_path / "back.raw")
    back = (tmp_path / "back.raw").read_bytes()
    assert back == source.read_bytes() + b"\1" * 2 * CLUSTER + bytes(CLUSTER)


def both_say_alone(image: bytearray) -> None:
    _, l2, _ = tables(image)
    put(image, l2 + 8, word(image, l2))


def refcount_of_nobody(image: bytearray) -> None:
    _, l2, block = tables(image)
    put(image, block + 2 * ((word(image, l2) & PLACE) // CLUSTER), 0, "H")


def shared_and_says_alone(image: bytearray) -> None:
    _, l2, block = tables(image)
    put(image, block + 2 * ((word(image, l2) & PLACE) // CLUSTER), 2, "H")


def over(where: Callable[[bytearray], int], *, flag: int = COPIED) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        _, l2, _ = tables(image)
        put(image, l2, where(image) | flag)

    return change


def two_tables_in_one(image: bytearray) -> None:
    """With the refcount that this needs, which no check minds."""
    l1, _, block = tables(image)
    put(image, 48, l1)
    put(image, block + 2 * (l1 // CLUSTER), 2, "H")
    put(image, l1 + 8, 0)


DAMAGE: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "two that say that they have a cluster alone": (both_say_alone, "refcount=1 reference=2"),
    "no refcount": (refcount_of_nobody, "refcount=0"),
    "COPIED with a refcount of 2": (shared_and_says_alone, "OFLAG_COPIED data cluster"),
    "data over the L1 table": (over(lambda image: tables(image)[0]), "it is damaged"),
    "data over the L1 table, without COPIED": (over(lambda image: tables(image)[0], flag=0), "it is damaged"),
    "data over the L2 table": (over(lambda image: tables(image)[1]), "it is damaged"),
    "data over the L2 table, without COPIED": (over(lambda image: tables(image)[1], flag=0), "it is damaged"),
    "data over the refcount table": (over(lambda image: word(image, 48)), "it is damaged"),
    "data over a refcount block": (over(lambda image: tables(image)[2], flag=0), "it is damaged"),
    "data beyond the end": (over(lambda image: 1 << 40), "exceeding the end of the file"),
    "data off its boundary": (over(lambda image: 5 * CLUSTER + 512), "not properly aligned"),
    "a reserved bit": (over(lambda image: 5 * CLUSTER | 1 << 58), "reserved bits set"),
    "the refcount table over the L1 table": (two_tables_in_one, "it is damaged"),
    "the corrupt bit": (lambda image: put(image, 72, 2), "Image is corrupt; cannot be opened read/write"),
    "the dirty bit": (lambda image: put(image, 72, 1), "its refcounts are not up to date"),
    "a raw data file that is none": (lambda image: put(image, 88, 2), "data-file-raw requires a data file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_before_anything_is_written(tmp_path: Path, name: str):
    change, words = DAMAGE[name]
    target = made(tmp_path / "t.qcow2", 4 * CLUSTER)
    io(target, f"write -P 1 0 {2 * CLUSTER}")
    patched(target, change)
    refused(noise(tmp_path / "s.raw", CLUSTER), target, words)


def test_a_refcount_block_that_is_cut_off_is_refused_before_anything_is_written(tmp_path: Path):
    """What is lost of it are zeros, so no check minds."""
    target = made(tmp_path / "t.qcow2", 4 * CLUSTER)

    def move(image: bytearray) -> None:
        """The block to the end of the file."""
        _, _, block = tables(image)
        del image[4 * CLUSTER :]
        image += bytes(4 * CLUSTER - len(image)) + image[block : block + 512]
        put(image, 4 * CLUSTER + 2 * (block // CLUSTER), 0, "H")
        put(image, 4 * CLUSTER + 2 * 4, 1, "H")
        put(image, word(image, 48), 4 * CLUSTER)

    patched(target, move)
    sound(target)
    refused(noise(tmp_path / "s.raw", CLUSTER), target, "refcount block at byte 262144 is not in the file")


@pytest.mark.parametrize(
    "options",
    [(), ("compat=0.10",), ("cluster_size=512", "refcount_bits=64"), ("extended_l2=on",), ("refcount_bits=4",)],
    ids=lambda options: ", ".join(options) or "as usual",
)
def test_snapshots_stay_what_they_are(tmp_path: Path, options: tuple[str, ...]):
    target = made(tmp_path / "t.qcow2", MiB, *options)
    for number, name in enumerate(("first", "second"), 1):
        io(target, f"write -P {number} {number * 100 * KiB} 300k")
        run("qemu-img", "snapshot", "-c", name, target)
    before = {name: snapshot(tmp_path, target, name) for name in ("first", "second")}
    for number in range(2):
        source = noise(tmp_path / "s.raw", MiB - number * 77 * 512)
        copied(source, target)
        run("qemu-img", "convert", "-O", "raw", target, tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes()[: source.stat().st_size] == source.read_bytes()
        sound(target)
        assert {name: snapshot(tmp_path, target, name) for name in before} == before


def snapshot(folder: Path, image: Path, name: str) -> bytes:
    run("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", image, folder / "snapshot.raw")
    return (folder / "snapshot.raw").read_bytes()


def test_a_leak_is_no_reason_and_stays(tmp_path: Path):
    target = made(tmp_path / "t.qcow2", 4 * CLUSTER)
    io(target, f"write -P 1 0 {2 * CLUSTER}")
    patched(target, lambda image: put(image, tables(image)[1] + 8, 0))
    source = noise(tmp_path / "s.raw", 4 * CLUSTER)
    copied(source, target)
    equal(source, target)
    done = subprocess.run(["qemu-img", "check", target], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "1 leaked clusters" in done.stdout + done.stderr


def test_a_refcount_table_of_8_mib_takes_little_memory(tmp_path: Path):
    """Its last entry names a block, far behind the end: the same in a sound image, and in one that has no refcounts."""
    cluster = 2 * MiB
    fixed = (MAGIC, 3, 0, 0, 21, 1 << 30, 0, 1, 6 * cluster, cluster, 4, 0, 0, 0, 0, 0, 4, 104)
    source = noise(tmp_path / "s.raw", 64 * KiB)
    for kept in (False, True):
        target = tmp_path / "bomb.qcow2"
        with target.open("wb") as file:
            file.write(struct.pack(">IIQIIQIIQQIIQQQQII", *fixed))
            if kept:
                file.seek(cluster)
                file.write(struct.pack(">Q", 7 * cluster))
                file.seek(7 * cluster)
                file.write(struct.pack(">8H", *[1] * 8))
            file.seek(5 * cluster - 8)
            file.write(struct.pack(">Q", 5 * cluster))
            file.seek(5 * cluster)
            file.write(b"\xff" * 16)
            file.truncate(8 * cluster)
        words = [sys.executable, "-m", "mpconv", "convert", "-n", "-O", "qcow2", "-f", "raw", source, target]
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True)
        code, peak = map(int, done.stdout.split())
        assert peak < 100 * KiB
        assert code == (0 if kept else 1) and len(done.stderr.splitlines()) == 1 - kept, done.stderr
        if kept:
            run("qemu-img", "convert", "-O", "raw", target, tmp_path / "back.raw")
            assert (tmp_path / "back.raw").read_bytes().startswith(source.read_bytes())
