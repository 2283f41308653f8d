"""Disks that QEMU writes to: refused where qemu-img refuses them, with its words and exit codes, unless with -U."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import make_image, mpconv

MiB = 1 << 20
WRITTEN = 'Failed to get shared "write" lock'


def qemu_img(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)


@contextmanager
def written_to(image: Path, fmt: str) -> Iterator[None]:
    """A guest has the disk, as far as the disk knows."""
    command = ["qemu-io", "-f", fmt, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.read(len("qemu-io> ")) == b"qemu-io> "
        yield
        user.stdin.close()


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A disk, others over it, one with a data file, one that nobody has."""
    monkeypatch.chdir(tmp_path)
    make_image(tmp_path / "a.raw", 2 * MiB)
    make_image(tmp_path / "r.raw", 2 * MiB)
    for command in (
        ("convert", "-O", "qcow2", "a.raw", "lk.qcow2"),
        ("create", "-f", "qcow2", "-b", "lk.qcow2", "-F", "qcow2", "ov.qcow2"),
        ("create", "-f", "qcow2", "-b", "ov.qcow2", "-F", "qcow2", "top.qcow2"),
        ("create", "-f", "qcow2", "-b", "r.raw", "-F", "raw", "onraw.qcow2"),
        ("create", "-f", "qcow2", "-o", "data_file=d.raw", "df.qcow2", "2M"),
    ):
        assert qemu_img(*command).returncode == 0
    return tmp_path


def told(error: str) -> str:
    """Without the programs' own ways to say where, and to hint."""
    found = re.search(r"Failed to get [^\n(]*lock", error)
    return found.group() if found else ""


def same(command: str, *only_ours: str) -> None:
    """Both programs end alike. `only_ours`: options that qemu-img has no need of."""
    verb, *rest = command.split()
    theirs, ours = qemu_img(verb, *rest), mpconv(verb, *only_ours, *rest)
    assert (ours.returncode, told(ours.stderr)) == (theirs.returncode, told(theirs.stderr)), (command, ours.stderr)
    if theirs.returncode and told(theirs.stderr):
        assert ours.stderr.count("\n") == 1


TOLD = ("info {}", "map {}", "measure {}", "measure -O qcow2 {}", "compare {} a.raw", "compare a.raw {}", "check {}")


@pytest.mark.parametrize("command", TOLD)
def test_a_disk_that_is_written_to(images, command):
    with written_to(images / "lk.qcow2", "qcow2"):
        same(command.format("lk.qcow2"))
        verb, *rest = command.format("lk.qcow2").split()
        same(" ".join((verb, "-U", *rest)))
        refused = mpconv(verb, *rest)
        assert WRITTEN in refused.stderr and refused.returncode == (2 if verb == "compare" else 1)
    same(command.format("lk.qcow2"))


@pytest.mark.parametrize("command", [*TOLD[:1], *TOLD[1:6], "info --backing-chain {}"])
@pytest.mark.parametrize("image", ["ov.qcow2", "top.qcow2"])
def test_a_disk_below_that_is_written_to(images, command, image):
    with written_to(images / "lk.qcow2", "qcow2"):
        trust = () if command == TOLD[0] else ("--allow-backing",)
        same(command.format(image), *trust)
        verb, *rest = command.format(image).split()
        same(" ".join((verb, "-U", *rest)), *trust)


@pytest.mark.parametrize("command", ["info {}", "map {}", "measure {}", "compare {} a.raw"])
def test_a_raw_disk_is_told_of_while_it_is_written_to(images, command):
    with written_to(images / "r.raw", "raw"):
        same(command.format("-f raw r.raw"))
        same(command.format("onraw.qcow2"), *(() if command.startswith("info") else ("--allow-backing",)))


def test_a_qcow2_disk_taken_as_raw(images):
    with written_to(images / "lk.qcow2", "qcow2"):
        for command in ("info", "map", "measure"):
            same(f"{command} -f raw lk.qcow2")


@pytest.mark.parametrize("command", ["map df.qcow2", "measure df.qcow2", "compare df.qcow2 a.raw"])
def test_a_data_file_that_is_written_to(images, command):
    with written_to(images / "d.raw", "raw"):
        same(command, "--allow-data-file")


def test_a_base_that_is_written_to(images):
    convert = "convert -O qcow2 -B {} -F {} a.raw o.qcow2"
    with written_to(images / "lk.qcow2", "qcow2"):
        for options in ("", "-U "):
            same(convert.format("lk.qcow2", "qcow2").replace("convert", f"convert {options}"))
        refused = mpconv(*convert.format("lk.qcow2", "qcow2").replace("o.qcow2", "new.qcow2").split())
        assert refused.returncode == 1 and WRITTEN in refused.stderr
        assert not (images / "new.qcow2").exists()
        same(convert.format("ov.qcow2", "qcow2"), "--allow-backing")
    with written_to(images / "r.raw", "raw"):
        same(convert.format("r.raw", "raw"))
        same("convert -O raw onraw.qcow2 o.raw", "--allow-backing")
        same("convert -U -O raw onraw.qcow2 o.raw", "--allow-backing")


def test_a_checksum_of_a_disk_that_is_written_to(images):
    with written_to(images / "lk.qcow2", "qcow2"):
        for options, code in (((), 1), (("-U",), 0)):
            ran = mpconv("checksum", *options, "lk.qcow2")
            assert ran.returncode == code and (WRITTEN in ran.stderr) == bool(code), ran.stderr


def test_a_fan_out_looks_at_its_targets_too(images):
    plan = '[[job]]\nname = "one"\nsource = "a.raw"\nsource_format = "raw"\ntarget = "r.raw"\n'
    (images / "plan.toml").write_text(plan)
    assert mpconv("fanout", "--check", "plan.toml").returncode == 0
    with written_to(images / "lk.qcow2", "qcow2"):
        (images / "plan.toml").write_text(plan.replace("r.raw", "lk.qcow2"))
        ran = mpconv("fanout", "--check", "plan.toml")
        assert ran.returncode == 1 and 'Failed to get "write" lock' in ran.stderr, ran.stderr
