"""Names are bytes: those that are no UTF-8, and those that would steer a terminal, are names as any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpconv.model.names import readable
from tests.conftest import make_image, mpconv

MiB = 1 << 20
NAMES = [b"b\xfcro.raw", b"a\nb\x1b[31m.raw", b"50%20@x,y?z=1&.raw", b"\xf4\x8f\xbf\xbf.raw", "ä\u202eb.raw".encode()]


def run(*words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """The command with names of bytes."""
    return subprocess.run(
        [sys.executable, "-m", "mpconv", *words], capture_output=True, timeout=60, check=False, env=dict(os.environ)
    )


def no_control_characters(text: bytes) -> bool:
    return all(byte >= 32 or byte in b"\n\r" for byte in text) and b"\x7f" not in text


@pytest.fixture
def image(tmp_path) -> Path:
    make_image(tmp_path / "a.raw", 3 * MiB)
    return tmp_path / "a.raw"


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_it_and_into_it(name, image, folder):
    named, copy, back = (folder + b"/" + word for word in (name, b"copy" + name, b"back"))
    for source, target, options in (
        (os.fsencode(image), named, [b"--verify", b"--digest", b"-v"]),
        (named, copy, [b"-W", b"--workers", b"2", b"--journal", folder + b"/j" + name]),
        (copy, back, [b"--progress=json", b"-O", b"qcow2"]),
    ):
        done = run("convert", *options, source, target)
        assert done.returncode == 0, done
        assert no_control_characters(done.stdout + done.stderr), done
    assert run("compare", image.as_posix(), back).stdout == b"Images are identical.\n"
    again = run("resume", folder + b"/j" + name)
    assert again.returncode == 0 and b"is finished" in again.stdout, again
    for command in ("status", "report"):
        shown = run(command, folder + b"/j" + name, *([b"--json"] if command == "report" else []))
        assert shown.returncode == 0 and no_control_characters(shown.stdout), shown


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_of_it(name, image, folder):
    named = folder + b"/" + name
    os.link(image, named)
    for words in (["info"], ["map"], ["checksum"], ["measure"], ["doctor", "--seconds", "0.1"], ["compare", named]):
        done = run(*words, named)
        assert done.returncode == 0 and no_control_characters(done.stdout + done.stderr), done
    missing = run("info", named + b"\xff\x07none")
    assert missing.returncode == 1 and no_control_characters(missing.stderr) and missing.stderr.count(b"\n") == 1
    ours = run("info", "--output=json", named)
    theirs = subprocess.run(["qemu-img", "info", "--output=json", named], capture_output=True, check=False)
    if theirs.returncode == 0:  # it takes what comes before a ':' for a protocol
        assert json.loads(ours.stdout)["filename"] == json.loads(theirs.stdout)["filename"]


@pytest.mark.parametrize("name", NAMES)
def test_several_targets(name, image, folder):
    targets = [folder + b"/" + name, folder + b"/2" + name]
    done = run("deploy", "--json", image.as_posix(), *targets)
    assert done.returncode == 0, done
    told = [one["target"] for one in json.loads(done.stdout)["targets"]]
    assert told == [readable(os.fsdecode(target)) for target in targets]
    for target in targets:
        assert Path(os.fsdecode(target)).read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("snapshot.name=my snap,,x=1", True),
        ("snapshot.id=1,snapshot.name=my snap,,x=1", True),
        ("snapshot.name=my snap,,x=1,snapshot.id=1", True),
        ("my snap,x=1", True),
        ("snapshot.name=b\udcfc,,,,", True),
        ("b\udcfc,,", True),
        ("snapshot.name=my snap", False),
        ("snapshot.id=2,snapshot.name=my snap,,x=1", False),
    ],
)
def test_a_snapshot_by_its_name(wanted, found, tmp_path):
    image = tmp_path / "s.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    for pattern, name in ((1, "my snap,x=1"), (2, "b\udcfc,,")):
        subprocess.run(["qemu-io", "-c", f"write -P {pattern} 0 64k", image], check=True, capture_output=True)
        subprocess.run(["qemu-img", "snapshot", "-c", name, image], check=True)
    theirs = subprocess.run(
        ["qemu-img", "convert", "-l", wanted, image, tmp_path / "theirs.raw"], check=False, capture_output=True
    )
    ours = mpconv("convert", "-l", wanted, image, tmp_path / "ours.raw")
    assert ours.returncode == theirs.returncode == (0 if found else 1)
    if found:
        assert (tmp_path / "ours.raw").read_bytes() == (tmp_path / "theirs.raw").read_bytes()
