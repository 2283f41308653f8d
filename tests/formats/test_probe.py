"""The guess at a format, beside qemu-img's."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from mpconv.formats.probe import probe

BOCHS = b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing".ljust(16, b"\0")
CLOOP = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
PARALLELS = b"WithoutFreeSpace"
FREE_PARALLELS = b"WithouFreSpacExt"

REFUSED = {
    "Could not locate UDIF trailer in dmg file": "dmg",
    "block_size cannot be zero": "cloop",
    "invalid VMDK image descriptor": "vmdk",
    "Unsupported qcow2 version": "qcow2",
    "unsupported VDI image": "vdi",
    "LUKS payload": "luks",
    "VHDX header": "vhdx",
    "Incorrect header checksum": "vpc",
    "QED cluster size is invalid": "qed",
}
"""qemu-img's words for an image that it took for a format and could not open."""


def qemu(path: Path) -> str:
    """The format qemu-img takes a file for."""
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", path.name],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        timeout=20,
    )
    if done.returncode == 0:
        return str(json.loads(done.stdout)["format"])
    return next((kind for words, kind in REFUSED.items() if words in done.stderr), done.stderr)


def ours(path: Path) -> str:
    with path.open("rb") as file:
        return probe(file.read(2048), path.name, path.stat().st_size)


@pytest.mark.parametrize(
    "kind", ["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow2 -o compat=0.10"]
)
def test_images_that_qemu_makes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", *kind.split(), str(path), "8M"], check=True, capture_output=True)
    assert ours(path) == qemu(path) == kind.split(maxsplit=1)[0]


@pytest.mark.parametrize("subformat", ["monolithicFlat", "streamOptimized", "twoGbMaxExtentSparse"])
def test_vmdk_has_two_faces(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "image.vmdk"
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), "8M"]
    subprocess.run(command, check=True, capture_output=True)
    assert ours(path) == qemu(path) == "vmdk"


def at(offset: int, what: bytes, start: bytes = b"") -> bytes:
    return start.ljust(offset, b"\0") + what


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.img", bytes(4096), "raw"),
        ("a.img", b"QFI\xfb" + struct.pack(">I", 0) + bytes(4096), "raw"),
        ("a.img", b"QFI\xfb" + struct.pack(">I", 9) + bytes(4096), "qcow2"),
        ("a.img", b"QFI\xfb" + struct.pack(">I", 9), "qcow2"),
        ("a.img", b"QFI\xfa" + struct.pack(">I", 3) + bytes(4096), "raw"),
        ("a.img", b"\0QFI\xfb" + bytes(4096), "raw"),
        ("a.img", at(2048, b"conectix") + bytes(504), "raw"),
        ("a.img", b"LUKS\xba\xbe\0\x01" + bytes(4096), "luks"),
        ("a.img", b"LUKS\xba\xbe\0\x02" + bytes(4096), "raw"),
        ("a.img", b"vhdxfile" + bytes(4096), "vhdx"),
        ("a.img", b"conectix" + bytes(4096), "vpc"),
        ("a.img", b"QED\0" + bytes(4096), "qed"),
        ("a.img", b"QED1" + bytes(4096), "raw"),
        ("a.img", at(0x40, struct.pack("<I", 0xBEDA107F)) + bytes(4096), "vdi"),
        ("a.img", at(0x40, struct.pack(">I", 0xBEDA107F)) + bytes(4096), "raw"),
        ("a.img", PARALLELS + struct.pack("<I", 3) + bytes(4096), "raw"),
        ("a.img", BOCHS + struct.pack("<I", 0x30000) + bytes(4096), "raw"),
        ("a.img", BOCHS.replace(b"Growing", b"Sparse!") + struct.pack("<I", 0x20000) + bytes(4096), "raw"),
        ("a.img", CLOOP + bytes(4096), "cloop"),
        ("a.img", CLOOP[:-1] + bytes(4096), "raw"),
        ("a.dmg", CLOOP + bytes(4096), "dmg"),
        ("a.dmg", bytes(4096), "dmg"),
        ("a.DMG", bytes(4096), "raw"),
        (".dmg", bytes(4096), "raw"),
        ("a.dmg", b"", "raw"),
        ("a.img", b"# x\n  \n# y\nversion=1\n" + bytes(4096), "vmdk"),
        ("a.img", b"version=3\r\n" + bytes(4096), "vmdk"),
        ("a.img", b"\nversion=1\n" + bytes(4096), "raw"),
        ("a.img", b"version=4\n" + bytes(4096), "raw"),
        ("a.img", b" version=1\n" + bytes(4096), "raw"),
        ("a.img", b"#" * 400 + b"\nversion=1\n" + bytes(4096), "vmdk"),
        ("a.img", b"#" * 510 + b"\nversion=1\n" + bytes(4096), "raw"),
        ("a.img", b"# no end", "raw"),
    ],
)
def test_headers_at_the_edge(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert (ours(path), qemu(path)) == (kind, kind)


@pytest.mark.parametrize("magic", [PARALLELS, FREE_PARALLELS])
def test_parallels(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "a.hds"
    # 63 heads' tracks of 2048 sectors, no block map entries, no sectors: an image of nothing.
    path.write_bytes((magic + struct.pack("<5IQ2I", 2, 16, 0, 2048, 0, 0, 0, 0)).ljust(4096, b"\0"))
    assert (ours(path), qemu(path)) == ("parallels", "parallels")


@pytest.mark.parametrize("version", [0x10000, 0x20000])
def test_bochs(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.bochs"
    path.write_bytes((BOCHS + struct.pack("<6I", version, 512, 1, 512, 4096, 0)).ljust(8192, b"\0"))
    assert (ours(path), qemu(path)) == ("bochs", "bochs")
