"""Digests of a copy that was killed and goes on: what the first run read counts, and is verified by the second."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpconv.journal.records import State
from tests.conftest import mpconv
from tests.e2e.test_resume import SIZE, Journaled, make_source, stored
from tests.jobs.test_verify import flip
from tests.support.digests import digest_of

MiB = 1 << 20


VARIANTS = [("-W", "--workers", "2"), ("-O", "qcow2", "-c", "-W", "--workers", "2")]


def killed_on_the_way(directory: Path, *words: str) -> None:
    """Once more than the first region is durable."""
    make_source(directory)
    copy = Journaled(directory, "-r", "8M", *words, "a.raw", "b.img")
    assert copy.until_durable() > 2 * MiB
    copy.kill()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of each variant, side by side; the last one's target is raw."""
    words = [("--digest", "--verify", *variant) for variant in VARIANTS] + [("--verify",)]
    directories = [tmp_path_factory.mktemp("killed") for _ in words]
    with ThreadPoolExecutor(len(words)) as threads:
        list(threads.map(lambda one: killed_on_the_way(one[0], *one[1]), zip(directories, words, strict=True)))
    return directories


def resumed(directory: Path) -> tuple[int, str, list[dict]]:
    """Exit code, stderr, and what was told after the end."""
    done = mpconv("resume", "-r", 0, "--progress=json", directory / "j.db")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, done.stderr, [report for report in told if "phase" not in report]


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_the_digest_is_of_both_runs(killed, variant):
    directory = killed[variant]
    code, words, results = resumed(directory)
    digest = digest_of((directory / "a.raw").read_bytes())
    assert (code, words) == (0, "")
    assert results == [{"verified": SIZE, "of": SIZE}, {"digest": digest, "image": str(directory / "b.img")}]
    ran = mpconv("checksum", directory / "a.raw", directory / "b.img")
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [digest] * 2


def test_what_changed_in_between_is_found_and_mended_it_is_verified_again(killed):
    directory = killed[-1]
    target = directory / "b.img"
    flip(target, MiB + 5)
    for _ in range(2):
        code, words, _ = resumed(directory)
        told = f"the target is not equal to the source: bytes 0 to 2097151 in '{target}': do not use it, copy again"
        assert (code, words) == (1, f"mpconv: {told}\n")
        assert stored(directory).state is State.FAILED
    flip(target, MiB + 5)
    assert resumed(directory) == (0, "", [{"verified": SIZE, "of": SIZE}])
    assert stored(directory).state is State.FINISHED
