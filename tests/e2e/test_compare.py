"""`mpconv compare` says what `qemu-img compare` says."""

from __future__ import annotations

import os
import random
import shutil
import subprocess

import pytest

from tests.conftest import make_image, mpconv

MiB = 1 << 20


def both(*arguments: object) -> tuple[int, str]:
    """What both programs say, which must be the same."""
    theirs = subprocess.run(["qemu-img", "compare", *map(str, arguments)], capture_output=True, text=True, check=False)
    ours = mpconv("compare", *arguments)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout), ours.stderr
    return ours.returncode, ours.stdout


@pytest.mark.parametrize("seed", range(7))
def test_random_changes(tmp_path, seed):
    chance = random.Random(seed)
    size = chance.choice([1, 700, 4096, MiB, 5 * MiB + 512, 9 * MiB + 33])
    make_image(tmp_path / "a.raw", size, seed)
    shutil.copy(tmp_path / "a.raw", tmp_path / "b.raw")
    other = chance.choice([size, size, size + 512, size + 3 * MiB, max(1, size - 700)])
    os.truncate(tmp_path / "b.raw", other)
    with (tmp_path / "b.raw").open("r+b") as file:
        for _ in range(chance.randrange(3)):
            file.seek(chance.randrange(other))
            file.write(b"\x55")
    for names in (("a.raw", "b.raw"), ("b.raw", "a.raw")):
        for options in ((), ("-s",), ("-q",)):
            both(*options, *(tmp_path / name for name in names))


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_difference_is_named_however_many_there_are(tmp_path, workers):
    size = 200 * MiB
    for name in ("a.raw", "b.raw"):
        with (tmp_path / name).open("wb") as file:
            for _ in range(size // MiB):
                file.write(b"\1" * MiB)
    with (tmp_path / "b.raw").open("r+b") as file:
        for at in (190 * MiB, 40 * MiB + 700, 41 * MiB):
            file.seek(at)
            file.write(b"\2")
    ran = mpconv("compare", "--workers", workers, "-m", 16, tmp_path / "a.raw", tmp_path / "b.raw")
    assert (ran.returncode, ran.stdout) == (1, f"Content mismatch at offset {40 * MiB + 512}!\n")


def test_holes_and_zeros_are_the_same(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(3 * MiB))
    with (tmp_path / "b.raw").open("wb") as file:
        file.truncate(3 * MiB)
    assert both(tmp_path / "a.raw", tmp_path / "b.raw") == (0, "Images are identical.\n")
    assert both("-s", tmp_path / "a.raw", tmp_path / "b.raw")[0] == 1


def test_between_servers(tmp_path, nfs, lun):
    make_image(nfs.path("compared.raw"), 20 * MiB)
    target = lun(20 * MiB, old_data=True)
    assert mpconv("convert", nfs.url("compared.raw"), target.url).returncode == 0
    ran = mpconv("compare", nfs.url("compared.raw"), target.url)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "Images are identical.\n", "")
    with target.backing.open("r+b") as file:
        file.seek(11 * MiB)
        file.write(b"\x5a\xa5")
    ran = mpconv("compare", nfs.url("compared.raw"), target.url)
    assert (ran.returncode, ran.stdout) == (1, f"Content mismatch at offset {11 * MiB}!\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.raw"], 1, "Expecting two image file names"),
        (["a.raw", "missing.raw"], 2, "Could not open 'missing.raw': No such file or directory"),
        (["-T", "nonsense", "a.raw", "a.raw"], 2, "Invalid source cache option: nonsense"),
        (["-F", "nonsense", "a.raw", "a.raw"], 2, "Could not open 'a.raw': Unknown driver 'nonsense'"),
        (["--nonsense", "a.raw", "a.raw"], 1, "unrecognized option '--nonsense'"),
    ],
)
def test_refusals(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    make_image(tmp_path / "a.raw", MiB)
    ran = mpconv("compare", *arguments)
    assert (ran.returncode, ran.stderr) == (code, f"mpconv: {words}\n")


def test_an_image_that_cannot_be_read_is_an_error_not_a_difference(tmp_path, lun):
    store = lun(4 * MiB, thin=False)
    os.truncate(store.backing, MiB)
    make_image(tmp_path / "a.raw", 4 * MiB)
    ran = mpconv("compare", tmp_path / "a.raw", store.url)
    assert ran.returncode == 4 and "error while reading at byte" in ran.stderr
