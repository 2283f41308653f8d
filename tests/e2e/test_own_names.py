"""Names of files that mean another one in every process: /proc/self/fd/N, /dev/fd/N, /dev/stdin, and links to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import mpconv

MiB = 1 << 20
NUMBER = 14
"""In a worker it is something else, as a rule the source."""


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.raw").write_bytes(os.urandom(3 * MiB))
    Path("o.raw").write_bytes(bytes(4096))
    Path("link").symlink_to(f"/proc/self/fd/{NUMBER}")
    return tmp_path


def run(file: object, *arguments: object, flags: int = os.O_RDWR) -> subprocess.CompletedProcess[str]:
    """With the file open under a number, and as standard input; `{own}` among the arguments: this process's name of it.

    The number is given out in the new process: here it may be anybody's.
    """
    fd = file if isinstance(file, int) else os.open(str(file), flags)
    try:
        own = f"/proc/{os.getpid()}/fd/{fd}"
        words = [sys.executable, "-m", "mpconv", *(own if word == "{own}" else str(word) for word in arguments)]
        command = ["bash", "-c", f'exec "$@" {NUMBER}<&0', "bash", *words]
        return subprocess.run(command, stdin=fd, capture_output=True, text=True, check=False, timeout=60)
    finally:
        os.close(fd)


NAMES = [f"/proc/self/fd/{NUMBER}", f"/dev/fd/{NUMBER}", "/dev/stdin", "link", f"file:/dev/fd/{NUMBER}"]


@pytest.mark.parametrize("name", [*NAMES, f"/proc/thread-self/fd/{NUMBER}", "{own}"])
@pytest.mark.parametrize("options", [(), ("-W", "--workers", 2), ("-n",), ("--verify",)])
def test_as_a_target(images, name, options):
    content = Path("a.raw").read_bytes()
    if "-n" in options:
        os.truncate("o.raw", len(content))
    ran = run("o.raw", "convert", "-f", "raw", "-O", "raw", *options, "a.raw", name)
    assert ran.returncode == 0, ran.stderr
    assert Path("o.raw").read_bytes() == content == Path("a.raw").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_as_a_source(images, name):
    content = Path("a.raw").read_bytes()
    assert run("a.raw", "convert", "-f", "raw", name, "o.raw", flags=os.O_RDONLY).returncode == 0
    assert Path("o.raw").read_bytes() == content
    for command in (("compare", "-f", "raw", "-F", "raw", name, "o.raw"), ("checksum", "-f", "raw", name)):
        assert run("a.raw", *command, flags=os.O_RDONLY).returncode == 0
    (images / "o.raw").write_bytes(b"\1" * len(content))
    assert run("a.raw", "compare", "-f", "raw", "-F", "raw", name, "o.raw", flags=os.O_RDONLY).returncode == 1


def test_of_a_deployment_and_with_a_journal(images):
    content = Path("a.raw").read_bytes()
    assert run("o.raw", "deploy", "-f", "raw", "a.raw", "b.raw", NAMES[0]).returncode == 0
    assert Path("o.raw").read_bytes() == Path("b.raw").read_bytes() == content
    os.truncate("o.raw", 0)
    assert run("o.raw", "convert", "-f", "raw", "--journal", "journal", "a.raw", NAMES[1]).returncode == 0
    assert Path("o.raw").read_bytes() == content == Path("a.raw").read_bytes()
    kept = json.loads(mpconv("status", "--output", "json", "journal").stdout)
    assert str(images / "o.raw") in json.dumps(kept)


def test_what_a_new_image_keeps_is_a_name_for_everybody(images):
    made = run("a.raw", "convert", "-O", "qcow2", "-f", "raw", "-B", NAMES[1], "-F", "raw", "a.raw", "new.qcow2")
    assert made.returncode == 0, made.stderr
    told = json.loads(mpconv("info", "--output=json", "new.qcow2").stdout)
    assert told["backing-filename"] == str(images / "a.raw")
    made = run("o.raw", "convert", "-O", "qcow2", "-f", "raw", "-o", f"data_file={NAMES[0]}", "a.raw", "new.qcow2")
    assert made.returncode == 0, made.stderr
    told = json.loads(mpconv("info", "--output=json", "new.qcow2").stdout)
    assert told["format-specific"]["data"]["data-file"] == str(images / "o.raw")
    judged = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", "a.raw", "new.qcow2"]
    assert subprocess.run(judged, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["removed", "memfd", "replaced"])
def test_a_file_without_a_name_is_refused_before_the_target_is_touched(images, kind):
    def opened() -> int:
        if kind == "memfd":
            fd = os.memfd_create("gone")
            os.truncate(fd, MiB)
            return fd
        Path("gone.raw").write_bytes(b"\1" * MiB)
        fd = os.open("gone.raw", os.O_RDWR)
        os.remove("gone.raw")
        if kind == "replaced":
            Path("gone.raw").write_bytes(b"\2" * MiB)
        return fd

    for name in NAMES:
        for names in ((name, "o.raw"), ("a.raw", name)):
            ran = run(opened(), "convert", "-f", "raw", *names)
            assert ran.returncode == 1 and ran.stderr.count("\n") == 1, ran.stderr
            assert "only this process has" in ran.stderr
    assert Path("o.raw").read_bytes() == bytes(4096)


def test_a_pipe_is_no_image(images):
    read, write = os.pipe()
    os.write(write, b"\1" * 4096)
    ran = run(read, "convert", "-f", "raw", "/dev/stdin", "o.raw")
    os.close(write)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "neither a regular file nor a block device" in ran.stderr
    assert Path("o.raw").read_bytes() == bytes(4096)


def test_the_source_under_a_number_is_no_target(images):
    content = Path("a.raw").read_bytes()
    for name in NAMES:
        ran = run("a.raw", "convert", "-f", "raw", "a.raw", name)
        assert ran.returncode == 1 and "same image" in ran.stderr
    assert Path("a.raw").read_bytes() == content
