"""A journal is believed only where nobody else has a hand in it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from mpconv.journal import ownership
from mpconv.model.errors import UsageError
from tests.conftest import make_image, mpconv

MiB = 1 << 20
STRANGER = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "ours").mkdir(mode=0o700)
    return tmp_path / "ours"


def begin(folder: Path) -> None:
    """A copy that is begun, and not ended."""
    make_image(folder / "a.raw", 4 * MiB)
    (folder / "victim").write_bytes(b"precious")
    done = mpconv("convert", "--journal", folder / "j", folder / "a.raw", folder / "b.raw")
    assert done.returncode == 0, done


def refused(path: Path, *words: str) -> str:
    done = mpconv("resume", path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "is not trusted" in done.stderr, done
    for word in words:
        assert word in done.stderr
    return done.stderr


def test_ours(folder):
    begin(folder)
    assert mpconv("resume", folder / "j").returncode == 0


@pytest.mark.parametrize("what", ["j", "."])
def test_it_or_its_directory_belongs_to_another(folder, what):
    begin(folder)
    os.chown(folder / what, STRANGER, STRANGER)
    refused(folder / "j", "belongs to", "--trust-journal")
    assert mpconv("resume", "--trust-journal", folder / "j").returncode == 0
    fresh = mpconv("convert", "--journal", folder / "j", folder / "a.raw", folder / "b.raw")
    assert fresh.returncode == 1 and "is not trusted" in fresh.stderr


@pytest.mark.parametrize(("what", "mode"), [("j", 0o666), ("j", 0o620), (".", 0o777), (".", 0o1777), (".", 0o770)])
def test_others_may_write(folder, what, mode):
    begin(folder)
    os.chown(folder / what, 0, STRANGER)
    os.chmod(folder / what, mode)
    refused(folder / "j", "others may write", f"{mode:04o}")


def test_a_directory_above_may_be_sticky_and_not_more(folder):
    (folder / "in").mkdir(mode=0o700)
    begin(folder / "in")
    os.chmod(folder, 0o1777)
    assert mpconv("resume", folder / "in" / "j").returncode == 0
    os.chmod(folder, 0o777)
    refused(folder / "in" / "j", "others may write")
    os.chmod(folder, 0o755)
    os.chown(folder, STRANGER, STRANGER)
    refused(folder / "in" / "j", "belongs to")


def test_no_link_is_followed(folder):
    begin(folder)
    os.rename(folder / "j", folder / "k")
    (folder / "j").symlink_to(folder / "k")
    refused(folder / "j", "is a link")
    os.unlink(folder / "j")
    (folder / "j").symlink_to(folder / "victim")
    done = mpconv("convert", "--journal", folder / "j", folder / "a.raw", folder / "b.raw")
    assert done.returncode == 1 and "is a link" in done.stderr
    assert (folder / "victim").read_bytes() == b"precious"


def test_a_linked_directory_is_judged_by_both_ends(folder):
    begin(folder)
    (folder.parent / "link").symlink_to(folder)
    assert mpconv("resume", folder.parent / "link" / "j").returncode == 0
    os.chown(folder.parent / "link", STRANGER, STRANGER, follow_symlinks=False)
    refused(folder.parent / "link" / "j", "belongs to")


@pytest.mark.parametrize("mask", [0, 0o277, 0o777])
def test_the_mode_is_the_same_whatever_the_umask(folder, mask):
    make_image(folder / "a.raw", MiB)
    command = f"umask {mask:o}; exec {os.sys.executable} -m mpconv convert --journal j a.raw null:"
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, timeout=60)
    for name in folder.glob("j*"):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600, name


def test_of_a_fan_out(folder, tmp_path):
    make_image(folder / "a.raw", MiB)
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[[job]]\nname = "one"\nsource = "{folder}/a.raw"\ntarget = "{folder}/b.raw"\n')
    journal = folder / "journal"
    assert mpconv("fanout", "--journal", journal, plan).returncode == 0
    assert mpconv("resume", journal).returncode == 0
    os.chown(journal / "one.journal", STRANGER, STRANGER)
    refused(journal, "one.journal", "belongs to")
    assert mpconv("resume", "--trust-journal", journal).returncode == 0
    os.chown(journal / "one.journal", 0, 0)
    os.chmod(journal, 0o777)
    refused(journal, "others may write")
    fresh = mpconv("fanout", "--journal", journal, plan)
    assert fresh.returncode == 1 and "is not trusted" in fresh.stderr


def test_one_that_is_not_there_is_judged_by_its_directory(folder):
    ownership.check(str(folder / "new"))
    os.chmod(folder, 0o1777)
    with pytest.raises(UsageError, match="others may write"):
        ownership.check(str(folder / "new"))
