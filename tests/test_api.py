"""What programs call: real copies of files, judged by qemu-img."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import mpconv
from tests.conftest import identical, make_image

MiB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_image(tmp_path / "source.raw", 8 * MiB)
    return tmp_path / "source.raw"


def children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


def test_a_copy_tells_how_it_went(source, tmp_path):
    heard: list[mpconv.Progress] = []
    before = children()
    options = mpconv.Options(target_format="qcow2", compress=True, digest=True, verify=1.0)
    copied = asyncio.run(mpconv.convert(str(source), str(tmp_path / "a.qcow2"), options, on_progress=heard.append))
    for words in (["compare", source, tmp_path / "a.qcow2"], ["check", tmp_path / "a.qcow2"]):
        subprocess.run(["qemu-img", *words], check=True, capture_output=True)
    assert (copied.size, copied.verified, copied.lost) == (8 * MiB, 8 * MiB, [])
    assert copied.seconds > 0
    assert copied.digest == mpconv.blocking.checksum(str(tmp_path / "a.qcow2")).digest
    assert [one.phase for one in heard][-1] == "verify"
    assert max(one.done for one in heard) == 8 * MiB
    assert children() == before


def test_two_at_once_and_an_error_in_one(source, tmp_path):
    async def both() -> tuple[mpconv.Copied, BaseException]:
        good = mpconv.convert(str(source), str(tmp_path / "a.raw"))
        bad = mpconv.convert(str(tmp_path / "absent"), str(tmp_path / "b.raw"))
        return tuple(await asyncio.gather(good, bad, return_exceptions=True))

    copied, error = asyncio.run(both())
    assert copied.size == 8 * MiB
    assert isinstance(error, mpconv.MpconvError)
    assert str(error) == f"Could not open '{tmp_path / 'absent'}': No such file or directory"
    assert identical(source, tmp_path / "a.raw")


def test_in_a_thread(source, tmp_path):
    """Where no signal handler can be set."""
    results: list[object] = []

    def copy() -> None:
        results.append(mpconv.blocking.convert(str(source), str(tmp_path / "a.raw")))
        results.append(mpconv.blocking.compare(str(source), str(tmp_path / "a.raw")))

    thread = threading.Thread(target=copy)
    thread.start()
    thread.join(60)
    assert [type(result) for result in results] == [mpconv.Copied, mpconv.Verdict]
    assert results[1] == mpconv.Verdict()


def test_signals_stay_the_program_s(source, tmp_path):
    def mine(*_: object) -> None:
        pass

    old = signal.signal(signal.SIGTERM, mine)
    seen: list[object] = []
    try:
        options = mpconv.Options(in_order=False)
        target = str(tmp_path / "a.raw")
        mpconv.blocking.convert(
            str(source), target, options, on_progress=lambda _: seen.append(signal.getsignal(signal.SIGTERM))
        )
    finally:
        signal.signal(signal.SIGTERM, old)
    assert set(seen) == {mine}


def test_cancelled_it_leaves_no_process(tmp_path):
    make_image(tmp_path / "big.raw", 64 * MiB)
    before = children()

    async def cancelled() -> None:
        begun = asyncio.Event()
        slowly = mpconv.Options(rate=8 * MiB)
        copy = asyncio.ensure_future(
            mpconv.convert(
                str(tmp_path / "big.raw"),
                str(tmp_path / "a.raw"),
                slowly,
                on_progress=lambda now: begun.set() if now.done else None,
            )
        )
        await begun.wait()
        assert children() > before
        copy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copy

    asyncio.run(cancelled())
    assert children() == before


def test_one_to_several(source, tmp_path):
    warned: list[str] = []
    targets = [str(tmp_path / "a.raw"), str(tmp_path / "nowhere" / "b.raw")]
    deployed = mpconv.blocking.deploy(str(source), targets, on_warning=warned.append)
    assert [outcome.error is None for outcome in deployed.outcomes] == [True, False]
    assert len(warned) == 1 and "is dropped" in warned[0]
    assert identical(source, tmp_path / "a.raw")


def test_a_callback_that_fails_ends_the_job(source, tmp_path):
    def fails(_: mpconv.Progress) -> None:
        raise ValueError("the program's own mistake")

    before = children()
    with pytest.raises((ValueError, mpconv.MpconvError), match="the program's own mistake"):
        mpconv.blocking.convert(str(source), str(tmp_path / "a.raw"), on_progress=fails)
    assert children() == before


def test_what_it_offers_is_there_and_costs_nothing_before():
    words = "import sys, mpconv; print(len([m for m in sys.modules if m.startswith('mpconv')]))"
    assert subprocess.check_output([sys.executable, "-c", words], text=True) == "1\n"
    assert all(getattr(mpconv, name) is not None for name in mpconv.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'convertt'"):
        mpconv.convertt  # noqa: B018
