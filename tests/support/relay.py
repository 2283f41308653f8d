"""A TCP relay on loopback between a client and a real server, whose links fail on command, and which can change what is
said: message by message, so that a server behaves as others do.

It runs in a thread with an event loop of its own; every method may be called from anywhere. What a test waits for is an
event, never a time: `wait_for` returns once so many connections were accepted, cut or bytes passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")
_READ = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
_PATIENCE = 60.0


def unchanged(message: bytearray) -> None:
    """A change that is none."""


def rpc_length(waiting: bytearray) -> int:
    """Of an RPC message over TCP, in one fragment."""
    return 4 + (int.from_bytes(waiting[:4]) & 0x7FFFFFFF)


def iscsi_length(waiting: bytearray) -> int:
    """Of an iSCSI PDU without digests."""
    return 48 + waiting[4] * 4 + -(-int.from_bytes(waiting[5:8]) // 4) * 4


@dataclass(frozen=True)
class Changes:
    """What is changed on the way. `length`: of the first message in what has come, of which its first 8 bytes tell.
    Nothing of a message is passed on before all of it has come.
    """

    length: Callable[[bytearray], int]
    request: Callable[[bytearray], object] = unchanged
    reply: Callable[[bytearray], object] = unchanged

    def of_one(self, *, replies: bool) -> Callable[[bytes], bytes]:
        """For what one connection carries one way."""
        waiting, change = bytearray(), self.reply if replies else self.request

        def changed(data: bytes) -> bytes:
            waiting.extend(data)
            done = bytearray()
            while len(waiting) >= 8 and len(waiting) >= (length := self.length(waiting)):
                message = waiting[:length]
                del waiting[:length]
                change(message)
                done += message
            return bytes(done)

        return changed


@dataclass(frozen=True)
class Way:
    """One direction. `delay`: seconds that what was read at a time lies in the relay; `rate`: bytes a second, of each
    connection; 0 for no limit.
    """

    delay: float = 0.0
    rate: float = 0.0


@dataclass(eq=False)
class _Link:
    """One connection through the relay."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    flowing: asyncio.Event
    passed: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def cut(self) -> None:
        """Reset both sides, and drop what lies in the relay."""
        for writer in (self.client, self.server):
            connection = writer.get_extra_info("socket")
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Relay:
    """Listens on `port` of 127.0.0.1 and passes on to a server.

    `counts`: "accepted", "refused", "cut" and "ended" connections, "bytes" of replies, and how often something was
    "held" by a stall.
    """

    def __init__(self, host: str, port: int, changes: Changes | None = None) -> None:
        self._server_at = (host, port)
        self._changes = changes
        self._up = self._down = Way()
        self.counts: Counter[str] = Counter()
        self._links: set[_Link] = set()
        self._stalled = False
        self._cuts_left, self._cut_after = 0, 0
        self._grows = 0
        self._cut_at: int | None = None
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="relay")
        self._thread.start()
        self.port = 0
        self._do(self._listen())

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _soon(self, call: Callable[[], None]) -> None:
        async def called() -> None:
            call()

        self._do(called())

    def _count(self, what: str, more: int = 1) -> None:
        with self._changed:
            self.counts[what] += more
            self._changed.notify_all()

    # -- what a test says

    def wait_for(self, what: str, count: int, seconds: float = _PATIENCE) -> None:
        """Until `counts[what]` is at least `count`."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self.counts[what] >= count, seconds)
        assert reached, f"{what}: {self.counts[what]} of {count} after {seconds} seconds"

    def cut(self) -> None:
        """All connections, now."""
        self._soon(self._cut_all)

    def cut_replies(self, after: int, times: int, *, grows: int = 0) -> None:
        """Each connection, when so many bytes of replies have come through it: inside a reply. `grows`: so many more
        after each cut, so that the next one does not come at the same place.
        """

        def arm() -> None:
            self._cuts_left, self._cut_after, self._grows = times, after, grows

        self._soon(arm)

    def cut_once(self, after: int) -> None:
        """The connection through which the last of so many more bytes of replies would have come, and no other."""

        def arm() -> None:
            self._cut_at = self.counts["bytes"] + after

        self._soon(arm)

    def stall(self, *, new_ones_too: bool = True) -> None:
        """Keep all connections and pass nothing on until `go_on`."""

        def hold() -> None:
            self._stalled = new_ones_too
            for link in self._links:
                link.flowing.clear()

        self._soon(hold)

    def go_on(self) -> None:
        """The end of `stall`."""

        def release() -> None:
            self._stalled = False
            for link in self._links:
                link.flowing.set()

        self._soon(release)

    def slow(self, *, delay: float = 0.0, rate: float = 0.0, up: bool = False) -> None:
        """From now on replies, or with `up` requests, take so many seconds longer, at so many bytes a second."""

        def change() -> None:
            if up:
                self._up = Way(delay, rate)
            else:
                self._down = Way(delay, rate)

        self._soon(change)

    def refuse(self) -> None:
        """Cut all connections, and refuse new ones until `accept`."""
        self._do(self._stop_listening())
        self.cut()

    def accept(self) -> None:
        """The end of `refuse`."""
        self._do(self._listen())

    def close(self) -> None:
        """End it all."""
        self._do(self._stop_listening())
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    # -- the loop

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _cut_all(self) -> None:
        for link in list(self._links):
            self._cut(link)

    def _cut(self, link: _Link) -> None:
        if link in self._links:
            self._links.discard(link)
            link.cut()
            for task in link.tasks:
                task.cancel()
            self._count("cut")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count("accepted")
        try:
            there, back = await asyncio.open_connection(*self._server_at)
        except OSError:
            self._count("refused")
            writer.transport.abort()
            return
        link = _Link(writer, back, asyncio.Event())
        if not self._stalled:
            link.flowing.set()
        self._links.add(link)
        for stream in (writer, back):
            with contextlib.suppress(OSError):  # one that is gone already
                stream.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.tasks = [
            asyncio.ensure_future(self._pass(link, reader, back, replies=False)),
            asyncio.ensure_future(self._pass(link, there, writer, replies=True)),
        ]
        await asyncio.wait(link.tasks)
        self._links.discard(link)
        self._count("ended")

    def _left(self, link: _Link) -> int | None:
        """Bytes of replies that may still pass before the connection is cut; None: it is not to be."""
        if self._cut_at is not None:
            return self._cut_at - self.counts["bytes"]
        return self._cut_after - link.passed if self._cuts_left else None

    def _was_due(self) -> None:
        if self._cut_at is not None:
            self._cut_at = None
        else:
            self._cuts_left -= 1
            self._cut_after += self._grows

    async def _pass(
        self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        changed = self._changes.of_one(replies=replies) if self._changes is not None else bytes
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_READ):
                data = changed(data)
                if not link.flowing.is_set():
                    self._count("held")
                    await link.flowing.wait()
                way = self._down if replies else self._up
                if way.delay or way.rate:
                    await asyncio.sleep(way.delay + (len(data) / way.rate if way.rate else 0))
                left = self._left(link)
                if replies and left is not None and len(data) > left:
                    sink.write(data[:left])
                    await sink.drain()
                    self._was_due()
                    self._cut(link)
                    return
                sink.write(data)
                await sink.drain()
                if replies:
                    link.passed += len(data)
                    self._count("bytes", len(data))
        sink.close()


@contextlib.contextmanager
def relay(host: str, port: int, changes: Changes | None = None) -> Iterator[Relay]:
    """One that is closed at the end."""
    made = Relay(host, port, changes)
    try:
        yield made
    finally:
        made.close()
