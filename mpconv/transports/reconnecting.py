"""Connections that survive their server's absence: what is lost is made again, and asked again.

What always holds: the lost connection is closed before anything is asked again, so nothing of it reaches a buffer any
more; the new one must lead to the same store, of the same size and unchanged, or the request fails with `Gone`; and no
`Retryable` comes out, except StatusWithdrawn, which means something else.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mpconv.model.errors import Gone, MpconvError, Retryable, StatusWithdrawn, internal
from mpconv.model.extent import Extent
from mpconv.transports.base import CLOSED, Buffer, Fingerprint, Transport, unlike
from mpconv.transports.identity import Facts
from mpconv.transports.retry import ANSWERS, Outage, Retry, Tell, keep_trying
from mpconv.transports.seen import Seen

_T = TypeVar("_T")
_ANEW = "see who writes to it, and begin anew"
_FORGETS_SECONDS = 5.0
"""A server may still count the session of who had it in the meantime, although that has ended."""
Reopen = Callable[[], Awaitable[Transport]]


class Reconnecting(Transport):
    """A store whose connection can be made again, by `reopen`. `steady`: nobody else may change what is stored.

    `tell`: hears in one line of every outage.
    """

    def __init__(self, store: Transport, reopen: Reopen, retry: Retry, tell: Tell, *, steady: bool = False) -> None:
        self._store = self._first = store
        self._reopen = reopen
        self._retry = retry
        self._tell = tell
        self._steady = steady
        self._remaking: asyncio.Task[None] | None = None
        self._over: MpconvError | None = None
        self._released = False
        self.name = store.name
        self.identity = store.identity
        self.version = store.version
        self.stamp = store.stamp
        self.marks = store.marks
        self.size = store.size
        self.limits = store.limits
        self.zero_initialised = store.zero_initialised
        self.fixed_size = store.fixed_size
        self.copy_may_spoil = store.copy_may_spoil
        self.rewrites = store.rewrites
        self.grows = store.grows
        self.growing = store.growing
        self.ordered = store.ordered
        self.creatable = store.creatable
        self._vague = store.vague

    @property
    def origin(self) -> Transport:
        return self._store.origin

    @property
    def guest_size(self) -> int:
        return self._store.guest_size

    async def release(self) -> bool:
        """The next request that needs it makes a new one."""
        if not await self._store.release() and self._over is None:
            self._released = True
            await self._store.close()
        return True

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        await self._take_up()
        await self._store.read_into(offset, buffer)

    async def write(self, offset: int, buffer: Buffer) -> None:
        await self._take_up()
        await self._store.write(offset, buffer)

    async def zero(self, offset: int, length: int) -> bool:
        await self._take_up()
        return await self._store.zero(offset, length)

    @property
    def zeroing(self) -> str:
        return self._store.zeroing

    async def disk_size(self) -> int | None:
        await self._take_up()
        return await self._store.disk_size()

    async def fingerprint(self) -> Fingerprint:
        """It is asked for before anything is under way, when nobody insists."""

        async def ask() -> Fingerprint:
            return await self._store.fingerprint()

        return await self._until_done(ask, Outage(self._retry))

    async def known_by(self) -> Facts:
        """As the fingerprint."""

        async def ask() -> Facts:
            return await self._store.known_by()

        return await self._until_done(ask, Outage(self._retry))

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        await self._take_up()
        return await self._store.block_status(offset, length)

    async def flush(self) -> None:
        await self._take_up()
        await self._store.flush()

    async def discard(self) -> bool:
        """By the connection that made it; those that came later know nothing of that."""
        return await self._first.discard()

    async def close(self) -> None:
        if self._over is None:
            self._over = Retryable(CLOSED, image=self.name)
        if self._remaking is not None:
            self._remaking.cancel()
            await asyncio.gather(self._remaking, return_exceptions=True)
        await self._store.close()

    async def retried(self, work: Callable[[], Awaitable[None]]) -> None:
        await self._until_done(work, Outage(self._retry))

    async def _until_done(self, work: Callable[[], Awaitable[_T]], outage: Outage) -> _T:
        """What `work` returns, done again on a new connection as often as one is lost."""
        while True:
            await self._take_up()
            store = self._store
            try:
                return await work()
            except StatusWithdrawn:
                raise
            except Retryable as error:
                await self._remake(store, error, outage)

    async def _take_up(self) -> None:
        """After `release`: a connection. It is made by one alone, however many need it."""
        while self._released:
            if self._over is not None:
                raise copy.copy(self._over)
            if self._remaking is None:
                self._remaking = asyncio.create_task(self._make_again(""))
            await asyncio.wait([self._remaking])

    async def _remake(self, lost: Transport, error: Retryable, outage: Outage) -> None:
        """Return when there is a new connection in place of `lost`. Raises what is final."""
        now = asyncio.get_running_loop().time()
        again = outage.again
        wait = outage.failed(error, now)
        if wait is None:
            raise outage.given_up(error, now)
        if again:  # a new connection that is lost at once, time and again, is no better than none
            await asyncio.sleep(wait)
        if self._over is None and self._store is lost:
            if self._remaking is None:
                self._remaking = asyncio.create_task(self._make_again(error.why))
            await asyncio.wait([self._remaking])
        if self._over is not None:
            if isinstance(self._over, Retryable):
                raise copy.copy(self._over)
            why = f"{error.why}: {self._over.reason or self._over.why}"
            raise type(self._over)(why, operation=error.operation, image=error.image, offset=error.offset)

    async def _make_again(self, why: str) -> None:
        """All that is asked of the lost connection fails when that is closed. `why`: nothing where it was released."""
        lost = self._store
        try:
            await lost.close()
            retry = self._retry if why else Retry(max(self._retry.seconds, _FORGETS_SECONDS))
            self._store = await keep_trying(self._open_same, retry, self._tell)
            self._released = False
            if why:
                self._tell(f"'{self.name}' was not to be reached ({why}): {ANSWERS}")
        except MpconvError as error:
            self._over = error
        except Exception as error:
            self._over = internal(error, "a transport")
        finally:
            self._remaking = None

    async def _open_same(self) -> Transport:
        store = await self._reopen()
        try:
            changed = await self._difference(store)
            if changed is not None:
                error = Gone(f"'{self.name}' {changed}", image=self.name)
                error.reason = changed
                raise error
        except BaseException:
            await store.close()
            raise
        return store

    async def _knows(self, store: Transport) -> bool:
        """Whether what is stored proves that it is the same store."""
        return False

    async def _difference(self, store: Transport) -> str | None:
        same = store.continues(self._first)
        if not (await self._knows(store) if same is None else same) or unlike(self.marks, store.marks):
            return f"is not the image it was when the copy began: {_ANEW}"
        if store.size < self.size or (self._steady and store.size != self.size):
            return f"has changed its size from {self.size} to {store.size} bytes: {_ANEW}"
        if self._steady and store.version != self.version:
            return f"has been changed since the copy began: {_ANEW}"
        return None


class ReconnectingReader(Reconnecting):
    """For reading: every request outlives the connection."""

    _seen: Seen | None = None

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        await self._take_up()
        store = self._store
        try:
            await store.read_into(offset, buffer)
        except Retryable as error:
            outage = Outage(self._retry)
            await self._remake(store, error, outage)
            await self._until_done(lambda: self._store.read_into(offset, buffer), outage)
        if self._vague:
            self._seen = self._seen or Seen()
            self._seen.add(offset, buffer)

    async def _knows(self, store: Transport) -> bool:
        return self._seen is not None and await self._seen.again_in(store)

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """The map of holes goes with the connection: the next one has its own, from the beginning, or none. As long as
        it is released, everything may be data; also where that ends what is being asked.
        """
        outage = Outage(self._retry)
        while not self._released:
            store = self._store
            try:
                return await store.block_status(offset, length)
            except StatusWithdrawn:
                raise
            except Retryable as error:
                if not self._released:
                    await self._remake(store, error, outage)
        return [Extent(offset, length)] if length else []
