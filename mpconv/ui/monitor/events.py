"""What an open page gets: server-sent events. Each client gets what is newest whenever it can take more."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from msgspec import Struct

from mpconv.ui.monitor.facts import Job
from mpconv.ui.monitor.record import shown

_BETWEEN = 1.0
"""Seconds between two looks, while somebody watches."""
_MOST = 64
"""Clients at a time."""
_KEEP_ALIVE = 10.0
"""Seconds without news after which a line says that the connection lives."""


class _Client(Struct, eq=False):
    """From an address. `leaving`: its place is somebody else's now."""

    name: str
    end: Callable[[], None]
    leaving: bool = False


class Live:
    """`facts` is asked once a second for all clients together, and only while there are any. `journals`: the jobs are
    others', and their ends are not the end.
    """

    def __init__(self, facts: Callable[[], Sequence[Job]], *, journals: bool) -> None:
        self._over_message = b"event: over\ndata: " + msgspec.json.encode({"journals": journals}) + b"\n\n"
        self._facts = facts
        self._messages: dict[str, bytes] = {}
        self._looked_at = -_BETWEEN
        self._news = asyncio.Event()
        self._over = False
        self._clients: list[_Client] = []
        self._left = asyncio.Event()

    def room(self, name: str) -> bool:
        """Whether a client from that address can be served. When all places are taken, who has most of them gives one
        to who has fewer.
        """
        if len(self._clients) < _MOST:
            return True
        staying = [client for client in self._clients if not client.leaving]
        held = Counter(client.name for client in staying)
        greedy, most = held.most_common(1)[0]
        if len(staying) >= _MOST:
            if held[name] + 1 >= most:
                return False
            oldest = next(client for client in staying if client.name == greedy)
            oldest.leaving = True
            oldest.end()
        return True

    async def messages(self, name: str, end: Callable[[], None]) -> AsyncIterator[bytes]:
        """For one client from that address, each job that has changed, until all is over. `end`: ends it."""
        seen: dict[str, bytes] = {}
        client = _Client(name, end)
        self._clients.append(client)
        try:
            self._look()
            while True:
                over, news = self._over, self._news
                for job, message in list(self._messages.items()):
                    if seen.get(job) != message:
                        seen[job] = message
                        yield message
                if over:
                    yield self._over_message
                    return
                if news.is_set():
                    continue
                try:
                    await asyncio.wait_for(news.wait(), _KEEP_ALIVE)
                except TimeoutError:
                    yield b":\n\n"
        finally:
            self._clients.remove(client)
            if not self._clients:
                self._left.set()

    @contextlib.asynccontextmanager
    async def running(self, parting: float) -> AsyncIterator[None]:
        """Look as long as the context lasts. At its end clients have `parting` seconds to hear how all has ended."""
        looking = asyncio.get_running_loop().create_task(self._look_on())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self._look(at_last=True)
            self._over = True
            self._tell()
            if self._clients:
                self._left.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._left.wait(), parting)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(_BETWEEN)
            if self._clients:
                self._look()

    def _look(self, *, at_last: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        if not at_last and now - self._looked_at < _BETWEEN / 2:
            return
        self._looked_at = now
        encode = msgspec.json.encode
        self._messages = {job.name: b"data: " + encode(shown(job)) + b"\n\n" for job in self._facts()}
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
