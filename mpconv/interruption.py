"""SIGINT and SIGTERM: whoever listens last is told; who listens to nobody is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from mpconv.errors import Interrupted

_Result = TypeVar("_Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_listeners: list[Callable[[Interrupted], None]] = []


@contextlib.contextmanager
def heard_by(listener: Callable[[Interrupted], None]) -> Iterator[None]:
    """The signals reach `listener`, on the running loop, and nobody who listened before."""
    loop = asyncio.get_running_loop()
    _listeners.append(listener)
    for number in _SIGNALS:
        loop.add_signal_handler(number, _hear, number)
    try:
        yield
    finally:
        _listeners.remove(listener)
        if not _listeners:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)


def _hear(number: int) -> None:
    _listeners[-1](Interrupted(number))


async def interruptible(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Its result. A signal cancels it: then Interrupted."""
    task = asyncio.get_running_loop().create_task(work)
    heard: list[Interrupted] = []

    def cancel(error: Interrupted) -> None:
        heard.append(error)
        task.cancel()

    with heard_by(cancel):
        try:
            return await task
        except asyncio.CancelledError:
            if heard:
                raise heard[0] from None
            raise
