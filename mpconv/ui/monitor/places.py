"""Connections to a server of ours: so many at once, and for seconds only where they do not ask for anything.

Others wait in the kernel's queue meanwhile. Who says nothing is not even handed over by it (TCP_DEFER_ACCEPT).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

_QUEUE = 4096
_DEFERRED = 3600
_PATIENCE = 5.0
"""Seconds in which a client says what it wants."""
_PRESSED = 1.0
"""The same when all places are taken."""
_LOOK = 0.25
_AT_ONCE = 16
"""Connections taken between two other things."""


class Places:
    """`most` connections. `factory`: makes the protocol of each."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], most: int) -> None:
        self._factory = factory
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._silent: dict[asyncio.BaseTransport, float] = {}
        self._asked: set[asyncio.BaseTransport] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._open = False
        self._timer: asyncio.TimerHandle | None = None

    async def listen(self, host: str | None, port: int) -> int:
        """The port. Raises OSError."""
        server = await self._loop.create_server(self._factory, host, port, backlog=_QUEUE, start_serving=False)
        self._listening = [socket.socket(fileno=at.dup().detach()) for at in server.sockets]
        server.close()
        for listening in self._listening:
            listening.setblocking(False)
            listening.listen(_QUEUE)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFERRED)
        self._look()
        return int(self._listening[0].getsockname()[1])

    def close(self) -> None:
        """Nobody is let in any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._set_open(False)
        for listening in self._listening:
            listening.close()

    def asked(self, transport: asyncio.BaseTransport | None) -> None:
        """The client on it has said what it wants, and may have it."""
        if transport is not None and self._silent.pop(transport, None) is not None:
            self._asked.add(transport)

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK, self._look)
        old = self._loop.time() - (_PATIENCE if self._free > 0 else _PRESSED)
        for transport, since in list(self._silent.items()):
            if transport.is_closing() or since < old:
                del self._silent[transport]
                if isinstance(transport, asyncio.Transport):
                    transport.abort()
        self._asked = {transport for transport in self._asked if not transport.is_closing()}
        self._set_open(self._free > 0)

    @property
    def _free(self) -> int:
        return self._most - len(self._silent) - len(self._asked) - len(self._making)

    def _set_open(self, now: bool) -> None:
        if now == self._open:
            return
        self._open = now
        for listening in self._listening:
            if now:
                self._loop.add_reader(listening, self._take, listening)
            else:
                self._loop.remove_reader(listening)

    def _take(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if self._free <= 0:
                self._set_open(False)
                return
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._set_open(False)  # until the next look
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._made(connection))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _made(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            transport, _ = await self._loop.connect_accepted_socket(self._factory, connection)
            self._silent[transport] = self._loop.time()
