"""An external data file is a word in somebody's image: where it may lie, and what is written into, the user says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import mpconv

MiB = 1 << 20


def image(folder: Path, data: str, *options: str) -> Path:
    """A disk of 1 MiB whose data file is called `data`, with a pattern in it."""
    made = folder / "disk.qcow2"
    told = ",".join([f"data_file={data}", *options])
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", told, made, "1M"], cwd=folder, check=True)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", made], cwd=folder, check=True, capture_output=True
    )
    return made


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A directory for images, and one that is nobody's business."""
    inside, outside = tmp_path / "images", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    return inside, outside


def noise(folder: Path) -> Path:
    source = folder / "a.raw"
    source.write_bytes(os.urandom(MiB))
    return source


def refused(words: str, *arguments: object) -> None:
    done = mpconv(*arguments)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_it_is_read_beside_the_image_or_where_it_is_said(places):
    inside, outside = places
    disk = image(inside, "disk.data")
    assert mpconv("convert", "--allow-data-file", disk, inside / "copy.raw").returncode == 0
    assert (inside / "copy.raw").read_bytes() == b"\7" * MiB
    refused("only with --allow-data-file", "convert", disk, inside / "copy.raw")
    disk = image(inside, f"{outside}/disk.data")
    (inside / "link").symlink_to(outside / "disk.data")
    for options in (["--allow-data-file"], [f"--allow-data-file={inside}"]):
        refused("lies in none of the directories", "convert", *options, disk, inside / "copy.raw")
    for options in ([f"--allow-data-file={outside}"], ["--allow-data-file", f"--allow-data-file={outside}"]):
        assert mpconv("convert", *options, disk, inside / "copy.raw").returncode == 0
    image(inside, "link")
    refused("lies in none of the directories", "map", "--allow-data-file", disk)


def test_a_directory_for_backing_files_is_none_for_data_files(places):
    inside, outside = places
    disk = image(inside, f"{outside}/disk.data")
    for options in ([f"--allow-backing={outside}"], [f"--allow-backing={outside}", "--allow-data-file"]):
        refused("the data file", "convert", *options, disk, inside / "copy.raw")


@pytest.mark.parametrize("raw", ["off", "on"])
def test_that_of_a_target_is_written_only_in_a_directory_with_a_name(places, tmp_path: Path, raw: str):
    inside, outside = places
    source = noise(tmp_path)
    for data in ("disk.data", f"{outside}/disk.data"):
        disk = image(inside, data, f"data_file_raw={raw}")
        before = (inside / data).read_bytes(), disk.read_bytes()
        copy = ["convert", "-n", "-f", "raw", "-O", "qcow2"]
        refused("only with --allow-data-file", *copy, source, disk)
        refused("written only with --allow-data-file=DIRECTORY", *copy, "--allow-data-file", source, disk)
        refused("lies in none of the directories", *copy, f"--allow-data-file={tmp_path}/other", source, disk)
        assert ((inside / data).read_bytes(), disk.read_bytes()) == before
        allowed = f"--allow-data-file={(inside / data).parent}"
        assert mpconv(*copy, allowed, "--verify", source, disk).returncode == 0
        assert (inside / data).read_bytes() == source.read_bytes()
        check = subprocess.run(["qemu-img", "check", disk], cwd=inside, capture_output=True, check=False)
        assert check.returncode == 0, check


def test_that_of_a_new_target_is_read_back_without_a_word(places, tmp_path: Path):
    inside, outside = places
    source = noise(tmp_path)
    done = mpconv(
        "convert",
        "--verify",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        f"data_file={outside}/d.data",
        source,
        inside / "d.qcow2",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["disk.qcow2", "link", "../a.raw"])
def test_that_of_a_target_is_neither_the_image_nor_a_source(places, tmp_path: Path, name: str):
    inside, _ = places
    source = noise(tmp_path)
    disk = image(inside, "a" * len(name))
    disk.write_bytes(disk.read_bytes().replace(b"a" * len(name), name.encode(), 1))
    (inside / "link").symlink_to("disk.qcow2")
    before = shutil.copy(disk, tmp_path / "before").read_bytes(), source.read_bytes()
    done = mpconv("convert", "-n", "-f", "raw", "-O", "qcow2", f"--allow-data-file={tmp_path}", source, disk)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "the same image" in done.stderr or "itself" in done.stderr
    assert (disk.read_bytes(), source.read_bytes()) == before


def test_a_plan_says_it_as_the_command_line_does(places, tmp_path: Path):
    inside, outside = places
    disk = image(inside, f"{outside}/disk.data")
    for allowed, code in (("true", 1), (f'"{outside}"', 0), (f'["{inside}", "{outside}"]', 0)):
        plan = tmp_path / "plan.toml"
        plan.write_text(
            f'[[job]]\nname = "a"\nsource = "{disk}"\ntarget = "{tmp_path}/a.raw"\nallow_data_file = {allowed}\n'
        )
        done = mpconv("fanout", plan)
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize("extended", ["off", "on"])
@pytest.mark.parametrize("old", ["write -P 9 64k 64k", "write -z 64k 64k", "discard 64k 64k"])
def test_the_bytes_behind_a_copy_that_ends_inside_of_a_cluster_stay(places, tmp_path: Path, old: str, extended: str):
    inside, _ = places
    disk = image(inside, "disk.data", f"extended_l2={extended}")
    before, after = tmp_path / "before.raw", tmp_path / "after.raw"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-d", "unmap", "-c", old, disk], cwd=inside, check=True, capture_output=True
    )
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, before], cwd=inside, check=True)
    source = tmp_path / "a.raw"
    source.write_bytes(os.urandom(70_144))
    done = mpconv("convert", "-n", "-f", "raw", "-O", "qcow2", f"--allow-data-file={inside}", source, disk)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, after], cwd=inside, check=True)
    assert after.read_bytes() == source.read_bytes() + before.read_bytes()[70_144:]
