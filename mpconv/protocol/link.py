"""Links: ZeroMQ sockets on the asyncio loop. A ROUTER at the coordinator, a DEALER at each worker.

The socket's descriptor is edge-triggered: it says "look at me" once, so looks follow each other until one finds the
socket empty, and every send is followed by a look. A look takes a bounded number of messages, so that a talkative
peer does not keep the loop from its other work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from mpconv.model.errors import ProtocolError

_ONE_LOOK = 256


class Link:
    """One socket. `receive` gets the frames of each message that arrives, in order; where it raises ProtocolError, as
    they are no message, they are dropped and counted (`dropped`).
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], kind: int, receive: Callable[[list[bytes]], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self._fd = int(self.socket.getsockopt(zmq.FD))
        self.dropped = 0
        self._closed = False
        self._looking = False

    def start(self) -> None:
        """Begin to receive; the socket is bound or connected by now."""
        self._loop.add_reader(self._fd, self._look)
        self._look_soon()

    def send(self, *frames: bytes) -> None:
        """Queue a message; it never blocks."""
        if self._closed:
            return
        self.socket.send_multipart(frames, flags=zmq.NOBLOCK)
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        for _ in range(_ONE_LOOK):
            if self._closed:
                return
            if not int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:  # asked for less than zmq.Again costs
                return
            try:
                self._receive(self.socket.recv_multipart(flags=zmq.NOBLOCK))
            except ProtocolError:
                self.dropped += 1
            except BaseException:
                self._look_soon()  # the descriptor does not tell again of what still lies in the socket
                raise
        self._look_soon()

    def close(self, linger_ms: int = 0) -> None:
        """Stop; what is queued still has `linger_ms` milliseconds to go out."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self.socket.close(linger=linger_ms)
