"""info, map and measure beside qemu-img 7.2's, byte for byte; on NFS and iSCSI, where ours knows more, by itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpconv.formats.raw import RawImage
from mpconv.inspection.block_map import block_map
from mpconv.model.errors import StatusWithdrawn
from mpconv.model.extent import Extent, Kind
from mpconv.transports.memory import MemoryTransport
from tests.conftest import make_image, mpconv

MiB = 1 << 20
TiB = 1 << 40
OURS = (sys.executable, "-m", "mpconv")
THEIRS = ("qemu-img",)


def outcome(program: tuple[str, ...], arguments: list[object]) -> tuple[int, bytes, str]:
    """Exit code, output, and the error in one line without the program's name."""
    done = subprocess.run(
        [*program, *map(os.fspath, map(_path, arguments))], capture_output=True, timeout=60, check=False
    )
    lines = done.stderr.decode(errors="surrogateescape").splitlines()
    lines = [re.sub(r"^(qemu-img|mpconv): ", "", line) for line in lines if not line.startswith("Try 'qemu-img")]
    error = re.sub(r"^(Could not open '.*'): \1: ", r"\1: ", " ".join(lines))
    return done.returncode, done.stdout, error


def _path(argument: object) -> str | Path:
    return argument if isinstance(argument, Path) else str(argument)


def same(*arguments: object) -> tuple[int, bytes, str]:
    """What both programs do alike."""
    ours, theirs = outcome(OURS, list(arguments)), outcome(THEIRS, list(arguments))
    assert ours == theirs, arguments
    return ours


def same_for_each(commands: list[tuple[object, ...]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda command: same(*command), commands))


def sparse(path: Path, size: int, *data: tuple[int, int]) -> Path:
    """A file of `size` bytes with data in ranges (start, length)."""
    with path.open("wb") as file:
        file.truncate(size)
        for start, length in data:
            file.seek(start)
            file.write(random.Random(start).randbytes(length))
    return path


LAYOUTS: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "empty": (0, []),
    "one byte": (1, [(0, 1)]),
    "one byte, a hole": (1, []),
    "below a sector": (511, [(0, 511)]),
    "below a sector, a hole": (511, []),
    "a sector": (512, [(0, 512)]),
    "a sector and a byte": (513, [(0, 513)]),
    "999 bytes": (999, [(0, 10)]),
    "1000 KiB": (1000 * 1024, [(0, 4096)]),
    "all data": (1_000_001, [(0, 1_000_001)]),
    "a hole at the end": (1_000_001, [(0, 70_000)]),
    "a hole at the start": (1_000_001, [(900_000, 100_001)]),
    "holes at both ends": (5 * MiB + 512, [(MiB, 2 * MiB)]),
    "data at both ends": (5 * MiB + 512, [(0, 4096), (5 * MiB, 512)]),
    "the last sector alone": (5 * MiB + 512, [(5 * MiB, 512)]),
    "every other block": (2 * MiB, [(at, 4096) for at in range(0, 2 * MiB, 8192)]),
    "no data": (10 * MiB, []),
    "8 TiB": (8 * TiB, [(0, 1), (5_000_000_000_000, 3), (8 * TiB - 512, 512)]),
}


def check_all(image: Path) -> None:
    commands: list[tuple[object, ...]] = [
        (command, "-f", "raw", f"--output={output}", image)
        for command in ("info", "map", "measure")
        for output in ("human", "json")
    ]
    same_for_each([*commands, ("info", "-f", "raw", "--backing-chain", "--output=json", image)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_local_image(tmp_path, layout):
    size, data = LAYOUTS[layout]
    check_all(sparse(tmp_path / "a.raw", size, *data))


@pytest.mark.parametrize("seed", range(6))
def test_a_random_image(tmp_path, seed):
    make_image(tmp_path / "a.raw", random.Random(seed).randrange(8 * MiB), seed)
    check_all(tmp_path / "a.raw")


@pytest.mark.parametrize("name", ["with space.raw", 'ä"\\ 𝄞.raw', "\udcff\udcfe_.raw", "a%20b.raw", "a,b.raw"])
def test_a_name_that_needs_care(tmp_path, name):
    check_all(sparse(tmp_path / name, 1000, (0, 10)))


def test_the_part_of_the_map_that_was_asked_for(tmp_path):
    image = sparse(tmp_path / "a.raw", 1_000_001, (0, 100_000), (500_000, 500_001))
    ranges = [
        "-s 0", "-s 1", "-s 100 -l 1000", "-s 102400", "-s 1M", "-s 1000001", "-s 1000000 -l 1", "-s 7.5E", "-l 0",
        "-l 1", "-l 7E", "-s 0x19000 -l 0x100", "-s 1.5k -l .5", "-s 1k -l 1.5", "-s -1", "-s 8E", "-l 99E", "-l x",
        "-s 1e3", "--start-offset=64k --max-length=1M",
    ]  # fmt: skip
    same_for_each(
        [("map", "-f", "raw", f"--output={o}", *where.split(), image) for where in ranges for o in ("human", "json")]
    )


def test_options(tmp_path):
    image = sparse(tmp_path / "a.raw", 5000, (0, 4096))
    same_for_each(
        [
            ("info", image),
            ("info", "-fraw", image),
            ("info", image, "-f", "raw"),
            ("info", "--format", "raw", "--force-share", "--output", "human", image),
            ("info", "-U", "--backing-chain", "-f", "raw", "--", image),
            ("info", "-f", "raw", f"file:{image}"),
            ("map", "-U", image),
            ("map", "-f", "raw", f"file:{image}"),
            ("measure", "-U", "-f", "raw", "-O", "raw", image),
            ("measure", "-o", "preallocation=full,size=7", "-o", "nocow=on", image),
            ("measure", "--size", "0"),
            ("measure", "--size", "1000001", "--output=json"),
            ("measure", "--size", "9223372036854775807"),
            ("measure", "--size", "1", "-O", "raw", "-o", "extent_size_hint=1M"),
        ]
    )


def test_what_is_refused(tmp_path):
    image = sparse(tmp_path / "a.raw", 5000)
    commands: list[tuple[object, ...]] = []
    for command in ("info", "map"):
        commands += [
            (command,),
            (command, image, image),
            (command, "--output=xml", image),
            (command, "--output=", image),
            (command, "--output=xml"),
            (command, "--output"),
            (command, "-x", image),
            (command, "--nonsense", image),
        ]
    for command in ("info", "map", "measure"):
        commands += [
            (command, "-f", "foo", image),
            (command, "-f", "", image),
            (command, "-f", "raw", ""),
            (command, "-f", "raw", tmp_path / "missing.raw"),
            (command, "-f", "raw", image / "x"),
            (command, "--image-opts", "-f", "raw", image),
        ]
    commands += [
        ("measure",),
        ("measure", "a", "b"),
        ("measure", "--size", "1", "a", "b"),
        ("measure", "--size", "1", image),
        ("measure", "--size", "1", "-f", "raw"),
        ("measure", "--size", "1", "-l", "x"),
        ("measure", "--size", "1", "--image-opts"),
        ("measure", "--size", "x"),
        ("measure", "--size", "9E"),
        ("measure", "--size", "1", "--output=xml"),
        ("measure", "--size", "1", "-O", "foo"),
        ("measure", "--size", "1", "-O", ""),
        ("measure", "-O", "foo", image),
        ("measure", "-l", "x", "-f", "raw", image),
        ("measure", "--size", "1", "-o", ""),
        ("measure", "--size", "1", "-o", "size=1,"),
    ]
    same_for_each(commands)
    assert outcome(OURS, ["info", image, image])[0] == 1


@pytest.mark.parametrize("text", ["size=1,foo=2", "=1", "nocow", "nocow=x", "size=x", "extent_size_hint=1x", "help"])
def test_wrong_target_options(text):
    """qemu-img goes on for some lines."""
    ours, theirs = (outcome(program, ["measure", "--size", "1", "-o", text]) for program in (OURS, THEIRS))
    assert ours[:2] == theirs[:2] == (1, b"") and ours[2] and theirs[2].startswith(ours[2])


@pytest.mark.parametrize("command", ["info", "map", "measure"])
def test_other_formats(tmp_path, command):
    image = tmp_path / "a.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", image, "1M"], check=True)
    for arguments in ([image], ["-f", "vmdk", image]):
        code, output, error = outcome(OURS, [command, *arguments])
        assert (code, output) == (1, b"") and error.startswith(f"Could not open '{image}': ") and "vmdk" in error
    same(command, "-f", "raw", image)
    assert outcome(OURS, ["measure", "--size", "1", "-O", "vmdk"])[2] == "mpconv cannot write vmdk images yet"


def test_image_opts(tmp_path):
    image = sparse(tmp_path / "a.raw", 1_000_001, (0, 100_000))
    whole = f"driver=raw,file.driver=file,file.filename={image}"
    part = f"{whole},offset=65536,size=131072"
    same_for_each(
        [(command, "--image-opts", whole) for command in ("info", "map", "measure")]
        + [(command, "--image-opts", part) for command in ("map", "measure")]
        + [("map", "--output=json", "--image-opts", part), ("info", "--image-opts", f"file.filename={image}")]
    )
    qcow2 = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "1M"], check=True)
    for command in ("info", "map", "measure"):
        same(command, "--image-opts", f"driver=qcow2,file.filename={qcow2}")
        same(command, "--image-opts", f"file.filename={qcow2}")
    same("info", "--image-opts", f"driver=raw,file.filename={qcow2}")


def test_an_image_that_a_guest_has_open(tmp_path):
    image = sparse(tmp_path / "a.raw", MiB, (0, 4096))
    guest = subprocess.Popen(
        ["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert guest.stdin is not None and guest.stdout is not None
    try:
        guest.stdin.write(b"write 0 512\n")
        guest.stdin.flush()
        while b"wrote" not in guest.stdout.readline():
            pass
        for command in ("info", "map", "measure"):
            same(command, "-f", "raw", image)
            same(command, "-U", "-f", "raw", image)
    finally:
        guest.communicate(b"quit\n", timeout=20)


def test_an_output_that_cannot_be_written(tmp_path):
    image = sparse(tmp_path / "a.raw", 2 * MiB, *[(at, 4096) for at in range(0, 2 * MiB, 8192)])
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*OURS, "map", "-f", "raw", image], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "mpconv: error while writing to standard output: No space left on device\n",
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*OURS, "map", "-f", "raw", image], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *OURS, "map", "-f", "raw", image]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def mapped(*arguments: object) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is data) by our map."""
    done = mpconv("map", "--output=json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    entries = json.loads(done.stdout)
    assert all(entry["offset"] == entry["start"] and entry["zero"] is not entry["data"] for entry in entries)
    return [(entry["start"], entry["start"] + entry["length"], entry["data"]) for entry in entries]


def test_nfs_shows_the_holes_that_a_local_map_shows(nfs):
    image = sparse(nfs.path("mapped.raw"), 5 * MiB + 700, (0, 4096), (MiB, 2 * MiB))
    url = nfs.url("mapped.raw")
    assert mapped("-f", "raw", url) == mapped("-f", "raw", image)
    assert mapped("-f", "raw", "-s", "1M", "-l", "3M", url) == [(MiB, 3 * MiB, True), (3 * MiB, 4 * MiB, False)]
    human = mpconv("map", "-f", "raw", url).stdout.splitlines()
    assert human[1:] == [
        f"0               0x1000          0               {url}",
        f"0x100000        0x200000        0x100000        {url}",
    ]


def test_nfs_tells_what_qemu_tells(registered_nfs):
    nfs = registered_nfs
    sparse(nfs.path("told.raw"), 5 * MiB + 700, (MiB, 2 * MiB))
    for command in ("info", "measure"):
        for output in ("human", "json"):
            arguments = (command, "-f", "raw", f"--output={output}")
            ours = outcome(OURS, [*arguments, nfs.url("told.raw")])
            theirs = outcome(THEIRS, [*arguments, nfs.qemu_url("told.raw")])
            assert ours == (0, _with_url(theirs[1], nfs.url("told.raw")), "")


@pytest.mark.parametrize("block_size", [512, 4096])
def test_iscsi(lun, block_size):
    url = lun(4 * MiB, block_size=block_size).url
    for command in ("info", "map", "measure"):
        for output in ("human", "json"):
            arguments = [command, "-f", "raw", f"--output={output}", url]
            ours, theirs = outcome(OURS, arguments), outcome(THEIRS, arguments)
            assert ours == (0, _with_url(theirs[1], url), "")
    assert mapped("-f", "raw", "-s", "700", "-l", "5000", url) == [(700, 5700, False)]


def _with_url(output: bytes, url: str) -> bytes:
    """qemu-img names a LUN by its options, in JSON, and knows no port in an NFS URL."""
    output = re.sub(rb"(?m)^image: .*$", b"image: " + url.encode(), output)
    return re.sub(rb'(?m)"filename": ".*",$', b'"filename": "' + url.encode() + b'",', output)


def test_iscsi_data_and_holes(lun):
    written = lun(4 * MiB)
    with written.backing.open("r+b") as file:
        file.seek(MiB)
        file.write(b"\xa5" * MiB)
    ours, theirs = (
        outcome(program, ["map", "-f", "raw", "--output=json", written.url])[:2] for program in (OURS, THEIRS)
    )
    assert ours == theirs


def test_a_password_is_not_shown(lun):
    url = lun(MiB).url.replace("//", "//alice%right-secret-1@")
    for command in ("info", "map"):
        done = mpconv(command, "-f", "raw", url)
        assert "secret" not in done.stdout + done.stderr


def test_null():
    assert mpconv("info", "null:?size=1M").stdout.splitlines()[:3] == [
        "image: null:?size=1M",
        "file format: raw",
        "virtual size: 1 MiB (1048576 bytes)",
    ]
    assert mpconv("measure", "null:?size=1000").stdout == "required size: 1024\nfully allocated size: 1024\n"
    assert mpconv("map", "null:?size=1000", "--output=json").returncode == 0


class Liar(MemoryTransport):
    """Its holes turn out to be none, halfway."""

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        if offset >= MiB:
            raise StatusWithdrawn("the holes were none", operation="reading block status", image=self.name)
        return [Extent(offset, MiB - offset, Kind.ZERO)]


def test_a_store_whose_holes_are_none_is_not_believed():
    warnings: list[str] = []
    image = RawImage(Liar("memory:liar", bytearray(2 * MiB + 700), created=False))
    entries = asyncio.run(block_map(image, 512, None, warnings.append))
    assert [(entry.start, entry.length, entry.data, entry.zero) for entry in entries] == [
        (512, 2 * MiB + 188, True, False),
        (2 * MiB + 700, 324, False, True),
    ]
    assert len(warnings) == 1 and "the holes were none" in warnings[0]
