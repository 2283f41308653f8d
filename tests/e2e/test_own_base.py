"""A target that is, or lies below, its own backing file or data file: refused before anything is written."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest

from mpconv.model.units import MiB
from tests.conftest import identical, make_image, mpconv
from tests.support.servers import NfsServer

SIZE = 4 * MiB


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


_numbers = itertools.count()
"""A directory for each test: the server remembers what was in one for a while."""


@pytest.fixture
def images(nfs: NfsServer) -> Path:
    """base.qcow2 <- middle.qcow2 <- top.qcow2, links to the base, and a raw source; in the export of a server."""
    where = nfs.path(f"own-base-{next(_numbers)}")
    where.mkdir()
    make_image(where / "a.raw", SIZE)
    qemu_img("convert", "-O", "qcow2", where / "a.raw", where / "base.qcow2")
    for below, name in (("base", "middle"), ("middle", "top")):
        qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", f"{below}.qcow2", where / f"{name}.qcow2")
    (where / "link.qcow2").symlink_to("base.qcow2")
    os.link(where / "base.qcow2", where / "hard.qcow2")
    (where / "data.raw").write_bytes(b"old")
    return where


def sums(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


BASED = "-F", "qcow2", "-O", "qcow2"
ON_BASE = [
    ("base.qcow2", "base.qcow2"),
    ("link.qcow2", "base.qcow2"),
    ("base.qcow2", "link.qcow2"),
    ("hard.qcow2", "base.qcow2"),
    ("middle.qcow2", "base.qcow2"),
    ("top.qcow2", "base.qcow2"),
    ("top.qcow2", "hard.qcow2"),
    ("top.qcow2", "middle.qcow2"),
]


@pytest.mark.parametrize("options", [(), ("-n",)], ids=["", "-n"])
@pytest.mark.parametrize(("base", "target"), ON_BASE)
def test_a_target_below_itself(images: Path, base: str, target: str, options: tuple[str, ...]) -> None:
    before = sums(images)
    done = mpconv("convert", *options, *BASED, "-B", images / base, images / "a.raw", images / target)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"the target '{images / target}' " in line
    assert base in line
    assert sums(images) == before


IN_JSON = [
    '{"driver": "qcow2", "file": {"driver": "file", "filename": "%s/base.qcow2"}}',
    '{"driver": "qcow2", "file.driver": "file", "file.filename": "%s/hard.qcow2"}',
    '{"file.filename": "%s/middle.qcow2"}',
    '{"driver": "raw", "file": {"driver": "raw", "file": {"driver": "file", "filename": "%s/link.qcow2"}}}',
]


@pytest.mark.parametrize("name", IN_JSON)
def test_a_layer_that_is_named_in_json(images: Path, name: str) -> None:
    """Copies never open such names, but QEMU does, and would find the target in the place of its base."""
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-u", "-b", f"json:{name % images}", images / "json.qcow2", "4M")
    before = sums(images)
    done = mpconv("convert", *BASED, "-B", images / "json.qcow2", images / "a.raw", images / "base.qcow2")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"the target '{images / 'base.qcow2'}' is what its backing file" in line
    assert sums(images) == before


@pytest.mark.parametrize("name", ["{", "[]", '{"file": 1, "file.filename": "x"}', '{"file":' * 120, '{"server": 3}'])
def test_json_that_names_nothing(images: Path, name: str) -> None:
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-u", "-b", f"json:{name}", images / "json.qcow2", "4M")
    done = mpconv("convert", *BASED, "-B", images / "json.qcow2", images / "a.raw", images / "new.qcow2")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("where", ["base", "target", "both"])
def test_by_another_road(images: Path, nfs: NfsServer, where: str) -> None:
    before = sums(images)
    url = nfs.url(f"{images.name}/base.qcow2")
    base, target = (url if where in (what, "both") else str(images / "base.qcow2") for what in ("base", "target"))
    done = mpconv("convert", *BASED, "-B", base, images / "a.raw", target)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "same image" in line
    assert sums(images) == before


def test_by_the_options(images: Path) -> None:
    before = sums(images)
    made = f"backing_file={images / 'base.qcow2'},backing_fmt=qcow2"
    done = mpconv("convert", "-O", "qcow2", "-o", made, images / "a.raw", images / "link.qcow2")
    assert done.returncode == 1
    assert "are the same image" in done.stderr
    assert sums(images) == before


@pytest.mark.parametrize(
    ("data", "target", "options"),
    [
        ("data.raw", "data.raw", ()),
        ("new.raw", "new.raw", ()),
        ("a.raw", "new.qcow2", ()),
        ("link.qcow2", "base.qcow2", ()),
        ("hard.qcow2", "base.qcow2", ()),
        ("base.qcow2", "new.qcow2", ("-F", "qcow2", "-B", "top.qcow2")),
        ("hard.qcow2", "new.qcow2", ("-F", "qcow2", "-B", "top.qcow2")),
    ],
)
def test_a_data_file_that_is_something_else(images: Path, data: str, target: str, options: tuple[str, ...]) -> None:
    before = sums(images)
    given = [images / word if word == "top.qcow2" else word for word in options]
    made = f"data_file={images / data}"
    done = mpconv("convert", "-O", "qcow2", "-o", made, *given, images / "a.raw", images / target)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert sums(images) == before


def test_a_data_file_of_its_own_is_written(images: Path) -> None:
    target = images / "new.qcow2"
    for _ in range(2):
        done = mpconv("convert", "-O", "qcow2", "-o", f"data_file={images / 'data.raw'}", images / "a.raw", target)
        assert done.returncode == 0, done.stderr
        qemu_img("compare", images / "a.raw", target)


def test_an_overlay_of_the_base_is_made(images: Path) -> None:
    target = images / "new.qcow2"
    for _ in range(2):
        done = mpconv("convert", *BASED, "-B", images / "base.qcow2", images / "top.qcow2", target, "--allow-backing")
        assert done.returncode == 0, done.stderr
        qemu_img("compare", images / "a.raw", target)
    assert not identical(images / "a.raw", target)
