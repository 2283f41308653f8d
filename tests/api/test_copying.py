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


@pytest.mark.parametrize("many", [False, True])
def test_ctrl_c_ends_it_as_python_does(tmp_path, many):
    make_image(tmp_path / "big.raw", 64 * MiB)
    before = children()
    pressed: list[object] = []

    def press(_: object) -> None:
        if not pressed and children() > before:
            pressed.append(os.kill(os.getpid(), signal.SIGINT))

    slowly = mpconv.Options(rate=8 * MiB)
    with pytest.raises(KeyboardInterrupt):
        if many:
            source, target = (mpconv.Place(url=str(tmp_path / name)) for name in ("big.raw", "a.raw"))
            plan = mpconv.Fanout(jobs=[mpconv.FanoutJob(name="a", sources=[source], target=target, options=slowly)])
            mpconv.blocking.fan_out(plan, on_progress=press)
        else:
            mpconv.blocking.convert(str(tmp_path / "big.raw"), str(tmp_path / "a.raw"), slowly, on_progress=press)
    assert children() == before


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
    assert subprocess.check_output([sys.executable, "-c", words], text=True) == "2\n"  # the version has a module
    assert all(getattr(mpconv, name) is not None for name in mpconv.__all__)
    assert set(mpconv.__all__) <= set(dir(mpconv))
    coroutines = {name for name in mpconv.__all__ if asyncio.iscoroutinefunction(getattr(mpconv, name))}
    assert "fan_out" in coroutines and all(callable(getattr(mpconv.blocking, name)) for name in coroutines)
    with pytest.raises(AttributeError, match="has no attribute 'convertt'"):
        mpconv.convertt  # noqa: B018


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"requests": 0}, "requests: between 1 and 1024"),
        ({"workers": 0}, "workers: between 1 and 256"),
        ({"rate": -1}, "rate: at least 0"),
        ({"retry_for": float("nan")}, "retry_for: seconds"),
        ({"cache": "unsafe"}, "cache: one of CACHE_MODES"),
        ({"verify": 5.0}, "verify: the share"),
        ({"verify": 0.0}, "verify: the share"),
        ({"sparse_size": 1000}, "sparse_size: a multiple of 512"),
        ({"target_format": "vmdk"}, "target_format: raw or qcow2"),
        ({"target_is_zero": True}, "create=False"),
        ({"offload": True, "digest": True}, "the data is not read"),
        ({"offload": True, "salvage": True}, "offload cannot be used with salvage"),
        ({"compress": True}, "qcow2 targets only"),
        ({"preallocation": "metadata"}, "preallocation: one of off, falloc, full"),
        ({"qcow2": mpconv.Qcow2Options()}, "of a qcow2 target"),
        ({"target_format": "qcow2", "compress": True, "compression_level": 10}, "between 1 and 9"),
        ({"target_format": "qcow2", "compression_level": 1}, "with compress only"),
        ({"target_format": "qcow2", "qcow2": mpconv.Qcow2Options(cluster_size=1000)}, "must be a power of two"),
        ({"target_format": "qcow2", "qcow2": mpconv.Qcow2Options(compression_type="lzma")}, "zlib, zstd"),
        ({"target_format": "qcow2", "qcow2": mpconv.Qcow2Options(backing_file="b.raw")}, "of which format"),
        (
            {
                "target_format": "qcow2",
                "digest": True,
                "qcow2": mpconv.Qcow2Options(backing_file="b.raw", backing_fmt="raw"),
            },
            "cannot be used with a backing_file",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_opened(tmp_path, options, why):
    chosen = mpconv.Options(**options)
    with pytest.raises(mpconv.MpconvError, match=why):
        mpconv.blocking.convert(str(tmp_path / "absent"), str(tmp_path / "a"), chosen)
    job = mpconv.FanoutJob(
        name="a", sources=[mpconv.Place(url="absent")], target=mpconv.Place(url=str(tmp_path / "a")), options=chosen
    )
    with pytest.raises(mpconv.MpconvError, match=f"job 'a': .*{why}"):
        mpconv.blocking.fan_out(mpconv.Fanout(jobs=[job]))
    assert list(tmp_path.iterdir()) == []


def test_so_in_the_other_jobs(tmp_path):
    unsafe = mpconv.Options(cache=mpconv.CACHE_MODES["unsafe"])
    blocking, name, journal = mpconv.blocking, str(tmp_path / "absent"), str(tmp_path / "j.db")
    for why, job in (
        ("cache mode unsafe", lambda: blocking.convert(name, name, unsafe, journal=journal)),
        ("cache mode unsafe", lambda: blocking.deploy(name, [name], unsafe, journal=journal)),
        ("of a file of this host only", lambda: blocking.convert(name, "null:", mpconv.Options(preallocation="full"))),
        ("raw targets only", lambda: blocking.deploy(name, [name], mpconv.Options(target_format="qcow2"))),
        ("needs a target", lambda: blocking.deploy(name, [])),
        ("needs a source", lambda: blocking.convert([], name)),
        ("requests: between", lambda: blocking.compare(name, name, mpconv.CompareOptions(requests=0))),
        ("workers: between", lambda: blocking.checksum(name, mpconv.ChecksumOptions(workers=0))),
    ):
        with pytest.raises(mpconv.MpconvError, match=why):
            job()
    assert list(tmp_path.iterdir()) == []
