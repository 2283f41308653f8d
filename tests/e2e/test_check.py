"""`mpconv check` beside qemu-img check: output, messages and exit codes; and over NFS and iSCSI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import mpconv


@pytest.fixture
def images(tmp_path):
    """Whole, leaking and corrupt ones, and a raw one: by name."""

    def refcount(path: Path, cluster: int, value: int) -> None:
        with path.open("r+b") as file:
            file.seek(0x20000 + 2 * cluster)
            file.write(value.to_bytes(2, "big"))

    whole = tmp_path / "whole.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", whole, "64M"], check=True)
    writes = ["-c", "write -P 1 0 1M", "-c", "write -P 2 5M 1M", "-c", "write -c -P 3 9M 640k"]
    subprocess.run(["qemu-io", *writes, whole], check=True, capture_output=True)
    for name in ("leaking.qcow2", "corrupt.qcow2", "both.qcow2"):
        shutil.copy(whole, tmp_path / name)
    last = whole.stat().st_size // 0x10000 - 1
    for name in ("leaking.qcow2", "both.qcow2"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate((last + 4) * 0x10000)
        refcount(tmp_path / name, last + 2, 1)
    for name in ("corrupt.qcow2", "both.qcow2"):
        refcount(tmp_path / name, 6, 0)
    (tmp_path / "a.raw").write_bytes(bytes(1 << 20))
    return tmp_path


def outcome(program: tuple[str, ...], arguments: tuple[str, ...], where: Path) -> tuple[int, str, list[str]]:
    """Exit code, output, and what is said of the image, in any order, without the program's name."""
    done = subprocess.run(
        [*program, "check", *arguments], cwd=where, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.startswith("Try 'qemu-img")]
    said = [line.removeprefix("qemu-img: ").removeprefix("mpconv: ") for line in said]
    return done.returncode, done.stdout, sorted(said)


def same(where: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """What both do alike."""
    ours = outcome((sys.executable, "-m", "mpconv"), arguments, where)
    assert ours == outcome(("qemu-img",), arguments, where)
    return ours


@pytest.mark.parametrize(("name", "code"), [("whole", 0), ("leaking", 3), ("corrupt", 2), ("both", 2)])
@pytest.mark.parametrize("output", ["human", "json"])
def test_the_same_is_said(images, name, code, output):
    assert same(images, f"--output={output}", "-f", "qcow2", f"{name}.qcow2")[0] == code


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("-q both.qcow2", 2),
        ("-q --output=json leaking.qcow2", 3),
        ("-U -T none whole.qcow2", 0),
        ("--force-share --format qcow2 -T unsafe file:whole.qcow2", 0),
        ("a.raw", 63),
        ("-f raw whole.qcow2", 63),
        ("-f raw --output=json a.raw", 63),
        ("", 1),
        ("a b", 1),
        ("--output=xml whole.qcow2", 1),
        ("-T nothing whole.qcow2", 1),
        ("-f qcow2 a.raw", 1),
        ("-f nothing a.raw", 1),
        ("--nothing a.raw", 1),
        ("-f raw --image-opts driver=raw,file.filename=a.raw", 1),
        ("--image-opts driver=raw,file.filename=a.raw", 63),
    ],
)
def test_options(images, arguments, code):
    assert same(images, *arguments.split())[0] == code


@pytest.mark.parametrize("what", ["leaks", "all", "anything"])
def test_nothing_is_repaired(images, what):
    before = (images / "both.qcow2").read_bytes()
    done = mpconv("check", "-r", what, images / "both.qcow2")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "mpconv: mpconv check does not repair: qemu-img check -r does\n",
    )
    assert (images / "both.qcow2").read_bytes() == before


def test_progress_is_taken_and_not_shown(images):
    assert mpconv("check", "-p", images / "whole.qcow2").stdout == mpconv("check", images / "whole.qcow2").stdout


def test_an_image_that_is_in_use(images):
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", images / "whole.qcow2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()
        refused = mpconv("check", images / "whole.qcow2")
        shared = mpconv("check", "-U", images / "whole.qcow2")
        user.communicate(b"quit\n")
    assert (refused.returncode, shared.returncode) == (1, 0)
    assert "lock" in refused.stderr


def test_over_nfs_and_iscsi(images, nfs, lun):
    image = images / "both.qcow2"
    expected = json.loads(mpconv("check", "--output=json", image).stdout)
    shutil.copy(image, nfs.export / "check.qcow2")
    target = lun(image.stat().st_size)
    shutil.copy(image, target.backing)
    for url in (nfs.url("check.qcow2"), target.url):
        done = mpconv("check", "--output=json", url)
        assert done.returncode == 2
        assert {**json.loads(done.stdout), "filename": str(image)} == expected
