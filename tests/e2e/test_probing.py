"""A guest writes a header of another format into the first sector of its LUN: its bytes are copied as they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Lun, make_image, mpconv

MiB = 1 << 20


@pytest.fixture(params=["qcow2", "vmdk"])
def disguised(request, lun, tmp_path) -> tuple[Lun, str]:
    """A raw disk that begins with an image of that format."""
    header = tmp_path / "header"
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, header, "1M"], check=True)
    made = lun(8 * MiB)
    make_image(made.backing, 8 * MiB)
    with made.backing.open("r+b") as file:
        file.write(header.read_bytes()[: 2 * MiB])
    return made, request.param


def test_it_is_raw_and_that_is_said(disguised, tmp_path):
    made, fmt = disguised
    (tmp_path / "copy.raw").write_bytes(made.backing.read_bytes())
    for words in (
        ("convert", made.url, tmp_path / "out.raw"),
        ("deploy", made.url, tmp_path / "out.raw"),
        ("compare", "-F", "raw", made.url, tmp_path / "copy.raw"),
        ("checksum", made.url),
        ("map", made.url),
        ("measure", made.url),
    ):
        done = mpconv(*words)
        assert done.returncode == 0, done
        assert f"looks like {fmt}" in done.stderr and "it is taken for raw" in done.stderr, done
        assert done.stderr.count("\n") == 1, done
        if words[0] in ("convert", "deploy"):
            assert (tmp_path / "out.raw").read_bytes() == made.backing.read_bytes()
            (tmp_path / "out.raw").unlink()
    assert mpconv("checksum", "-f", "raw", made.url).stderr == ""


def test_who_says_the_format_is_believed(lun, tmp_path):
    image = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 0 64k", image], check=True, capture_output=True)
    made = lun(8 * MiB)
    with made.backing.open("r+b") as file:
        file.write(image.read_bytes())
    done = mpconv("convert", "-f", "qcow2", made.url, tmp_path / "out.raw")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.raw").read_bytes() == b"\x07" * 65536 + bytes(MiB - 65536)
    assert "file format: qcow2" in mpconv("info", made.url).stdout


def test_a_device_that_a_chain_ends_in(tmp_path):
    """A backing file without a format is probed; a device below is raw."""
    guest, header = tmp_path / "guest.raw", tmp_path / "header"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", header, "1M"], check=True)
    make_image(guest, 4 * MiB)
    with guest.open("r+b") as file:
        file.write(header.read_bytes())
    done = subprocess.run(["losetup", "-f", "--show", guest], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no loop devices here")
    device = Path(done.stdout.strip())
    try:
        copied = mpconv("convert", device, tmp_path / "out.raw")
        assert copied.returncode == 0 and "looks like qcow2" in copied.stderr, copied
        assert (tmp_path / "out.raw").read_bytes() == guest.read_bytes()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
