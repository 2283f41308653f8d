"""Blocking calls beside the event loop, so that Ctrl-C and other connections go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from mpconv.model.errors import short_of

_T = TypeVar("_T")


async def in_any_case(call: Callable[[], _T]) -> _T:
    """What `call` returns, which may be made twice: beside the loop, or on it where no thread can be had."""
    try:
        return await asyncio.to_thread(call)
    except RuntimeError as error:
        if short_of(error) is None:
            raise
        return call()


async def beside(call: Callable[[], _T], *, seconds: float, undo: Callable[[_T], object] = lambda _: None) -> _T:
    """What `call` returns or raises; TimeoutError after `seconds`. A call that never ends dies with the process; of one
    that nobody waits for any more the result is given to `undo`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def deliver(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            if error is None:
                undo(result)  # type: ignore[arg-type]
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[_T | None, BaseException | None] = (call(), None)
        except BaseException as error:
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, *outcome)

    threading.Thread(target=run, daemon=True, name="blocking-call").start()
    try:
        return await asyncio.wait_for(future, seconds)
    except BaseException:
        if future.done() and not future.cancelled() and future.exception() is None:
            undo(future.result())
        raise
