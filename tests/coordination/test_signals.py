"""Who is told of a signal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from mpconv.coordination.signals import SignalScope, in_scope, interruptible, on_signal
from mpconv.model.errors import Interrupted


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_last_one_who_listens_is_told_alone():
    async def main() -> list[str]:
        told: list[str] = []
        with on_signal(lambda error: told.append("first")):
            with on_signal(lambda error: told.append("second")):
                send(signal.SIGINT)
                await asyncio.sleep(0.01)
            send(signal.SIGTERM)
            await asyncio.sleep(0.01)
        return told

    assert asyncio.run(main()) == ["second", "first"]


def test_jobs_side_by_side_are_told_by_who_has_started_them():
    """Each of them by its last listener; one that listens to nobody is cancelled."""

    async def main() -> tuple[list[str], list[object]]:
        told: list[str] = []
        audiences = [SignalScope(), SignalScope(), SignalScope()]
        may_end = asyncio.Event()

        async def listens(name: str) -> str:
            with on_signal(lambda error: (told.append(name), may_end.set())):
                await may_end.wait()
            return name

        async def hangs() -> None:
            await asyncio.Event().wait()

        def pass_on(error: Interrupted) -> None:
            for audience in audiences:
                audience.tell(Interrupted(error.number))

        with on_signal(pass_on):
            works = (listens("a"), listens("b"), hangs())
            jobs = [asyncio.ensure_future(in_scope(at, work)) for at, work in zip(audiences, works, strict=True)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            send(signal.SIGTERM)
            return told, await asyncio.gather(*jobs, return_exceptions=True)

    told, ended = asyncio.run(main())
    assert sorted(told) == ["a", "b"]
    assert ended[:2] == ["a", "b"]
    assert isinstance(ended[2], Interrupted) and ended[2].exit_code == 128 + signal.SIGTERM


def test_what_nobody_listens_in_is_cancelled():
    async def main() -> None:
        asyncio.get_running_loop().call_soon(send, signal.SIGINT)
        await interruptible(asyncio.Event().wait())

    with pytest.raises(Interrupted):
        asyncio.run(main())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
