"""Targets that allow one session, or a few: fewer workers, then none of the coordinator's own, or words at once."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from mpconv.model.units import MiB
from tests.conftest import identical, make_image, mpconv
from tests.support.faulty_target import FaultyTarget
from tests.support.faulty_target.hooks import most_sessions
from tests.support.faulty_target.target import Refusal

SIZE = 24 * MiB
REFUSALS = [(3, 2), (2, 6), (3, 0), (3, 1)]
RAW = ["-f", "raw", "-O", "raw"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    make_image(path, SIZE)
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    done = mpconv(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("options", [["--workers", "1"], [], ["--workers", "6"], ["-W", "--retry-for", "0"]])
def test_a_source_with_one_session(status: tuple[int, int], options: list[str], source: Path, tmp_path: Path) -> None:
    with FaultyTarget(path=source, on_login=most_sessions(1, status=status)) as target:
        run("convert", *RAW, *options, target.url(), tmp_path / "out.raw")
    assert identical(source, tmp_path / "out.raw")


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("options", [[], ["--workers", "1"], ["-W"], ["--verify"], ["--verify", "-W", "-S", "0"]])
def test_a_target_with_few_sessions(most: int, options: list[str], source: Path, tmp_path: Path) -> None:
    backing = tmp_path / "lun.img"
    backing.write_bytes(os.urandom(SIZE))
    with FaultyTarget(path=backing, on_login=most_sessions(most)) as target:
        run("convert", "-n", *RAW, *options, source, target.url())
        assert target.counts["SYNC16"]
    assert identical(source, backing)


@pytest.mark.parametrize("options", [[], ["--verify"], ["--verify=source"], ["--retry-for", "0"]], ids=" ".join)
def test_a_target_that_forgets_a_session_after_a_moment(options: list[str], source: Path, tmp_path: Path) -> None:
    backing = tmp_path / "lun.img"
    backing.write_bytes(os.urandom(SIZE))
    with FaultyTarget(path=backing, on_login=most_sessions(1, lingers=0.7)) as target:
        done = mpconv("convert", "-n", *RAW, *options, source, target.url())
    assert done.returncode == 0, done.stderr
    assert identical(source, backing)


def test_both_ends_with_one_session_each(source: Path, tmp_path: Path) -> None:
    backing = tmp_path / "lun.img"
    backing.write_bytes(os.urandom(SIZE))
    with (
        FaultyTarget(path=source, on_login=most_sessions(1)) as read,
        FaultyTarget(path=backing, on_login=most_sessions(1), serial=b"OTHER") as written,
    ):
        run("convert", "-n", *RAW, "--verify", read.url(), written.url())
        run("compare", "-f", "raw", "-F", "raw", read.url(), written.url())
    assert identical(source, backing)


@pytest.mark.parametrize(
    "command", [["info"], ["map"], ["measure", "-O", "raw"], ["checksum"], ["doctor", "--seconds", "1"], ["doctor"]]
)
def test_every_command_does_with_one_session(command: list[str], source: Path) -> None:
    with FaultyTarget(path=source, on_login=most_sessions(1)) as target:
        done = mpconv(*command, target.url())
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_deployment_to_targets_with_one_session_each(source: Path, tmp_path: Path) -> None:
    backings = [tmp_path / f"lun{number}.img" for number in range(3)]
    with ExitStack() as opened:
        urls = []
        for backing in backings:
            backing.write_bytes(os.urandom(SIZE))
            target = FaultyTarget(path=backing, on_login=most_sessions(1), serial=backing.name.encode())
            urls.append(opened.enter_context(target).url())
        run("deploy", "-n", "--verify", "-f", "raw", source, *urls)
    for backing in backings:
        assert identical(source, backing)


def test_a_copy_with_a_journal(source: Path, tmp_path: Path) -> None:
    backing = tmp_path / "lun.img"
    backing.write_bytes(os.urandom(SIZE))
    with FaultyTarget(path=backing, on_login=most_sessions(1)) as target:
        run("convert", "-n", *RAW, "--journal", tmp_path / "journal", source, target.url())
    assert identical(source, backing)


def at_once(done: subprocess.CompletedProcess[str], sessions: str) -> None:
    assert done.returncode == 1
    assert f"this needs {sessions} at a time" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_luns_of_a_target_with_two_sessions(source: Path) -> None:
    """A worker needs both."""
    with FaultyTarget(path=source, luns={1, 2}, on_login=most_sessions(2)) as target:
        run("compare", "-f", "raw", "-F", "raw", target.url(1), target.url(2))


def test_two_luns_of_a_target_with_one_session(source: Path) -> None:
    with FaultyTarget(path=source, luns={1, 2}, on_login=most_sessions(1)) as target:
        done = mpconv("compare", "-f", "raw", "-F", "raw", target.url(1), target.url(2))
    assert done.returncode == 2 and "has no room for another session" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_image_whose_tables_are_read_meanwhile(source: Path, tmp_path: Path) -> None:
    image = tmp_path / "source.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, image], check=True)
    with FaultyTarget(path=image, on_login=most_sessions(1)) as target:
        done = mpconv("convert", "-f", "qcow2", "-O", "raw", target.url(), tmp_path / "out.raw")
    at_once(done, "2 sessions")
    with FaultyTarget(path=image, on_login=most_sessions(2)) as target:
        run("convert", "-f", "qcow2", "-O", "raw", target.url(), tmp_path / "out.raw")
    assert identical(source, tmp_path / "out.raw")


def test_an_image_whose_tables_are_read_meanwhile_where_nobody_says_why(source: Path, tmp_path: Path) -> None:
    """The target is there, since the coordinator has a session: it is not waited for as one that is away."""
    image = tmp_path / "source.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, image], check=True)
    with FaultyTarget(path=image, on_login=most_sessions(1, status=(3, 1))) as target:
        done = mpconv("convert", "-f", "qcow2", "-O", "raw", target.url(), tmp_path / "out.raw")
    at_once(done, "2 sessions")


def test_a_target_that_somebody_else_uses(source: Path, tmp_path: Path) -> None:
    """It had room for the coordinator, and never has any again."""
    with FaultyTarget(path=source, on_login=lambda target, s, keys: (3, 2, {}) if target.logins else None) as target:
        done = mpconv("convert", *RAW, target.url(), tmp_path / "out.raw")
    at_once(done, "a session")


def test_a_target_that_is_away_for_a_moment(source: Path, tmp_path: Path) -> None:
    """It says that it is not available, which may be for want of room, and it is not: it is tried again."""
    until: list[float] = []

    def hook(target: FaultyTarget, session: object, keys: dict[str, str]) -> Refusal | None:
        if target.logins and not until:
            until.append(time.monotonic() + 6)
        return (3, 1, {}) if until and time.monotonic() < until[0] else None

    with FaultyTarget(path=source, on_login=hook) as target:
        done = mpconv("convert", *RAW, target.url(), tmp_path / "out.raw")
    assert done.returncode == 0, done.stderr
    assert "this needs a session at a time, if that is the reason" in done.stderr
    assert identical(source, tmp_path / "out.raw")
