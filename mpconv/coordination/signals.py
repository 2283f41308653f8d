"""SIGINT, SIGTERM and SIGHUP: whoever listens last is told; who listens to nobody is cancelled.

timeout(1), a service manager and a closing terminal send the same signal to all processes of a group, and to the
command again: what comes within ONE_WISH is one wish, also where the job ends meanwhile.

Jobs that run side by side have an SignalScope each, so that all of them can be told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from mpconv.model.errors import Interrupted
from mpconv.workers.launch.signals import Wishes

_Result = TypeVar("_Result")
Listener = Callable[[Interrupted], None]


class SignalScope:
    """Those who listen, one after the other: the last one is told."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def __len__(self) -> int:
        return len(self._listeners)

    def tell(self, error: Interrupted) -> None:
        """A signal came."""
        if self._listeners:
            self._listeners[-1](error)

    @contextlib.contextmanager
    def joined_by(self, listener: Listener) -> Iterator[None]:
        """It listens while the context lasts."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


_everybody = SignalScope()
_wishes = Wishes()
_audience: ContextVar[SignalScope] = ContextVar("audience", default=_everybody)


def last_of_the_process() -> None:
    """What is interrupted from now on is what this process is there for."""
    _wishes.last = True


@contextlib.contextmanager
def on_signal(listener: Listener) -> Iterator[None]:
    """The signals reach `listener`, on the running loop, and nobody who listened before. In a coroutine that runs
    `before` an audience of its own, what that audience is told does.
    """
    audience = _audience.get()
    if audience is _everybody and not audience:
        _wishes.begin(_hear)
    try:
        with audience.joined_by(listener):
            yield
    finally:
        if audience is _everybody and not audience:
            _wishes.end()


def _hear(number: int) -> None:
    _everybody.tell(Interrupted(number))


async def in_scope(audience: SignalScope, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Its result. Signals reach it only by what `audience` is told; as long as nobody in it listens, that cancels it:
    then Interrupted.
    """
    mark = _audience.set(audience)
    try:
        return await interruptible(work)
    finally:
        _audience.reset(mark)


async def interruptible(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Its result. A signal cancels it: then Interrupted."""
    task = asyncio.get_running_loop().create_task(work)
    heard: list[Interrupted] = []

    def cancel(error: Interrupted) -> None:
        heard.append(error)
        task.cancel()

    with on_signal(cancel):
        try:
            return await task
        except asyncio.CancelledError:
            if heard:
                raise heard[0] from None
            raise
