"""The targets of a job that has several: one that fails for good is dropped, and the others go on without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from mpconv.model.errors import MpconvError
from mpconv.transports.base import Buffer, Transport

_T = TypeVar("_T")
_Other = TypeVar("_Other")
Failed = Callable[[int, MpconvError], bool]
"""Is told of a target's number and of what went wrong with it. True: it is dropped; False: all begins anew."""


class DroppableTarget(Transport):
    """One of several targets, for writing. Once it is dropped whatever is asked of it counts as done: nobody reckons
    with it any more.

    `reads_zeros`: where nothing was written it reads as zeros, so that zeros are there already.
    """

    def __init__(self, number: int, inner: Transport, failed: Failed, *, reads_zeros: bool) -> None:
        self._number = number
        self._inner = inner
        self._failed = failed
        self._reads_zeros = reads_zeros
        self._dropped = False
        self.name = inner.name
        self.identity = inner.identity
        self.size = inner.size
        self.limits = inner.limits
        self.fixed_size = inner.fixed_size
        self.ordered = inner.ordered
        self.rewrites = inner.rewrites
        self.grows = inner.grows

    async def drop(self) -> None:
        """Ask nothing of it any more; what is under way ends."""
        self._dropped = True
        await self._inner.close()

    async def _asked(self, request: Callable[[], Awaitable[_T]], otherwise: _T) -> _T:
        if self._dropped:
            return otherwise
        try:
            return await request()
        except MpconvError as error:
            if self._dropped or self._failed(self._number, error):
                return otherwise
            raise

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        await self._inner.read_into(offset, buffer)

    async def write(self, offset: int, buffer: Buffer) -> None:
        await self._asked(lambda: self._inner.write(offset, buffer), None)

    async def zero(self, offset: int, length: int) -> bool:
        if self._reads_zeros:
            return True
        return await self._asked(lambda: self._inner.zero(offset, length), True)

    @property
    def zeroing(self) -> str:
        return "they are there" if self._reads_zeros else self._inner.zeroing

    async def flush(self) -> None:
        await self._asked(self._inner.flush, None)

    async def close(self) -> None:
        await self._inner.close()


async def all_of(works: list[Coroutine[Any, Any, None]]) -> None:
    """Do these at the same time, and end when all have ended; raises the first one's error. The first steps of all of
    them are done in turn before anything else that begins later.
    """
    if len(works) == 1:
        await works[0]
        return
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def both(first: Coroutine[Any, Any, _T], second: Coroutine[Any, Any, _Other]) -> tuple[_T, _Other]:
    """What they return, once both have ended; the first one's error goes before the second's."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other
