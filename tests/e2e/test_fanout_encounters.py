"""Jobs of one plan that meet in a data file, or in a file that was not there when the plan was looked at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpconv.model.units import MiB
from tests.conftest import identical, make_image, mpconv
from tests.support.servers import NfsServer

SIZE = 4 * MiB
NAMES = ("one", "two")
DATA_FILE = 'target_format = "qcow2"\noptions = { data_file = "%s" }'
INTO = 'target_format = "qcow2"\nno_create = true\nallow_data_file = "."'


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources, and files that are there, each with another name."""
    for number, name in enumerate(NAMES):
        make_image(tmp_path / f"{name}.raw", SIZE, seed=number)
    (tmp_path / "old.raw").write_bytes(b"old")
    for name in ("one", "two", "old"):
        (tmp_path / f"{name}-link.raw").hardlink_to(tmp_path / f"{name}.raw")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_plan(targets: tuple[str, str], words: tuple[str, str] = ("", ""), jobs: int = 1) -> None:
    text = f"[limits]\njobs = {jobs}\n"
    for name, target, more in zip(NAMES, targets, words, strict=True):
        text += f'[[job]]\nname = "{name}"\nsource = "{name}.raw"\nsource_format = "raw"\ntarget = "{target}"\n{more}\n'
    Path("plan.toml").write_text(text)


def contents(where: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in where.iterdir()}


@pytest.mark.parametrize(
    ("targets", "words", "why"),
    [
        (("a.qcow2", "new.raw"), (DATA_FILE % "new.raw", ""), "job 'one' has the same data file as this one's target"),
        (
            ("new.raw", "b.qcow2"),
            ("", DATA_FILE % "./new.raw"),
            "job 'one' has the same target as this one's data file",
        ),
        (
            ("a.qcow2", "b.qcow2"),
            (DATA_FILE % "new.raw",) * 2,
            "job 'one' has the same data file, 'new.raw'",
        ),
        (("a.qcow2", "b.qcow2"), (DATA_FILE % "two.raw", ""), "its source is the data file of job 'one'"),
        (
            ("a.qcow2", "old.raw"),
            (DATA_FILE % "old-link.raw", ""),
            "target 'old.raw' is the data file of job 'one'",
        ),
        (("a.qcow2", "b.raw"), (DATA_FILE % "two-link.raw", ""), "data file 'two-link.raw' is the source of job 'two'"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--check",)], ids=["", "--check"])
def test_a_data_file_to_be_made(
    where: Path, targets: tuple[str, str], words: tuple[str, str], why: str, options: tuple[str, ...]
) -> None:
    write_plan(targets, words)
    before = contents(where)
    done = mpconv("fanout", *options, "plan.toml")
    assert done.returncode == 1
    assert why in done.stderr
    assert contents(where) == before


@pytest.mark.parametrize(("other", "words"), [("two.qcow2", INTO), ("data.raw", "")])
def test_the_data_file_of_an_image_that_is_there(where: Path, other: str, words: str) -> None:
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "one.qcow2", str(SIZE)]
    subprocess.run(made, check=True)
    (where / "two.qcow2").write_bytes((where / "one.qcow2").read_bytes())
    write_plan(("one.qcow2", other), (INTO, words))
    before = contents(where)
    done = mpconv("fanout", "plan.toml")
    assert done.returncode == 1
    assert "'data.raw'" in done.stderr and "give each its own" in done.stderr
    assert contents(where) == before


@pytest.fixture
def mounted(where: Path) -> Iterator[Path]:
    """A directory by two names that no name tells of."""
    for name in ("a", "b"):
        (where / name).mkdir()
    subprocess.run(["mount", "--bind", "a", "b"], check=True)
    yield where / "a"
    subprocess.run(["umount", where / "b"], check=True)


@pytest.mark.parametrize("journal", [(), ("--journal", "kept")], ids=["", "journal"])
def test_a_target_that_another_job_has_made(mounted: Path, journal: tuple[str, ...]) -> None:
    write_plan(("a/new.raw", "b/new.raw"))
    done = mpconv("fanout", *journal, "plan.toml")
    assert done.returncode == 2
    assert (
        "two: failed: its target 'b/new.raw' is the target of job 'one', 'a/new.raw': give each its own" in done.stderr
    )
    assert identical("one.raw", mounted / "new.raw")


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    with NfsServer(tmp_path_factory.mktemp("encounters"), address="0.0.0.0") as server:
        yield server


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_new_file_by_two_addresses(everywhere: NfsServer, where: Path, jobs: int) -> None:
    """Side by side they may both find nothing there: then it is found when one is done, and nobody says all is well."""
    name = f"new{jobs}.raw"
    first, second = (everywhere.url(name).replace("0.0.0.0", f"127.0.0.{number}") for number in (1, 2))
    write_plan((first, second), jobs=jobs)
    done = mpconv("fanout", "plan.toml")
    assert done.returncode in ((2,) if jobs == 1 else (1, 2)), done.stderr
    assert "the target of job" in done.stderr
    if jobs == 1:
        assert identical("one.raw", everywhere.path(name))


@pytest.mark.parametrize("limit", ["size", "read-only"])
def test_what_will_not_pass_is_not_tried_again(where: Path, limit: str) -> None:
    """A file that may not become so large, and a file system that takes none."""
    (where / "there").mkdir()
    write_plan(("there/a.raw", "null:"))
    words = [sys.executable, "-m", "mpconv", "fanout", "plan.toml"]
    if limit == "size":
        done = subprocess.run(["prlimit", f"--fsize={MiB}", *words], capture_output=True, text=True, check=False)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "there"], check=True)
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        finally:
            subprocess.run(["umount", "there"], check=True)
    assert done.returncode == 2
    assert ("File too large" if limit == "size" else "Read-only file system") in done.stderr
    assert "begins again" not in done.stderr
