"""Copies that a program cancels, and that go on from their journals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mpconv
from mpconv.journal.file import peek
from mpconv.model.errors import Fatal
from tests.conftest import identical
from tests.conftest import mpconv as command

MiB = 1 << 20
SIZE = 24 * MiB
SLOWLY = mpconv.Options(rate=6 * MiB, digest=True)
AT_ONCE = mpconv.Effort(rate=0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "source.raw").write_bytes(os.urandom(SIZE))
    return str(tmp_path / "source.raw")


def durable(journal: Path) -> int:
    with contextlib.suppress(Fatal):  # it is being made
        stored, _ = peek(str(journal))
        return stored.bytes_done if stored is not None else 0
    return 0


def cut_off(journal: Path, job: Callable[..., Any], *words: object) -> int:
    """Run a job with that journal, and cancel it when a part is durable: how many bytes are."""

    async def cancelled() -> None:
        copy: asyncio.Task[object]

        def look(now: mpconv.Progress) -> None:
            if durable(journal) >= MiB:
                copy.cancel()

        copy = asyncio.ensure_future(job(*words, SLOWLY, journal=str(journal), on_progress=look))
        with pytest.raises(asyncio.CancelledError):
            await copy

    asyncio.run(cancelled())
    done = durable(journal)
    assert MiB <= done < SIZE
    return done


def test_a_copy_goes_on(source, tmp_path):
    journal, target = tmp_path / "j.db", tmp_path / "a.raw"
    done = cut_off(journal, mpconv.convert, source, str(target))
    assert not identical(source, target)
    heard: list[mpconv.Progress] = []
    resumed = mpconv.blocking.resume(str(journal), AT_ONCE, on_progress=heard.append)
    assert identical(source, target)
    assert min(one.done for one in heard if one.total) >= done
    assert not resumed.was_finished
    assert isinstance(resumed.result, mpconv.Copied)
    assert (resumed.result.size, resumed.result.zeros, resumed.result.lost) == (SIZE, 0, [])
    assert resumed.result.digest == mpconv.blocking.checksum(source).digest
    again = mpconv.blocking.resume(str(journal))
    assert again.was_finished
    assert isinstance(again.result, mpconv.Copied)
    assert (again.result.size, again.result.digest) == (SIZE, resumed.result.digest)


def test_a_deployment_goes_on_from_the_command_too(source, tmp_path):
    journal, targets = tmp_path / "j.db", [tmp_path / "a.raw", tmp_path / "b.raw"]
    cut_off(journal, mpconv.deploy, source, [str(target) for target in targets])
    shutil.copy(journal, tmp_path / "other.db")
    resumed = mpconv.blocking.resume(str(journal), AT_ONCE)
    assert isinstance(resumed.result, mpconv.Deployment)
    assert [outcome.error for outcome in resumed.result.outcomes] == [None, None]
    assert all(identical(source, target) for target in targets)
    assert mpconv.blocking.resume(str(journal)).was_finished
    done = command("resume", journal)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"The copy that the journal '{journal}' tells of is finished.\n",
        "",
    )


def test_a_source_that_was_changed_is_refused(source, tmp_path):
    journal = tmp_path / "j.db"
    cut_off(journal, mpconv.convert, source, str(tmp_path / "a.raw"))
    with open(source, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(mpconv.MpconvError, match="is not the image it was"):
        mpconv.blocking.resume(str(journal))


def test_journals_of_another_kind(source, tmp_path):
    (tmp_path / "fanout").mkdir()
    (tmp_path / "empty").touch()
    for name, why in (
        ("absent", "No such file or directory"),
        ("fanout", "is a fan-out's, and not one of a single copy: use resume_fan_out"),
        ("source.raw", "journal"),
        ("empty", "journal"),
    ):
        with pytest.raises(mpconv.MpconvError, match=why) as caught:
            mpconv.blocking.resume(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_one_that_is_in_use_is_refused(source, tmp_path):
    journal = tmp_path / "j.db"
    refused: list[str] = []

    async def twice() -> None:
        copy: asyncio.Task[object]

        async def resumes() -> None:
            with pytest.raises(mpconv.MpconvError) as caught:
                await mpconv.resume(str(journal))
            refused.append(str(caught.value))
            copy.cancel()

        second: list[asyncio.Task[None]] = []

        def look(now: mpconv.Progress) -> None:
            if not second and durable(journal):
                second.append(asyncio.ensure_future(resumes()))

        copy = asyncio.ensure_future(
            mpconv.convert(source, str(tmp_path / "a.raw"), SLOWLY, journal=str(journal), on_progress=look)
        )
        with pytest.raises(asyncio.CancelledError):
            await copy
        await second[0]

    asyncio.run(twice())
    assert len(refused) == 1 and "is in use by another mpconv" in refused[0]
