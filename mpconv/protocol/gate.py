"""The coordinator's socket for workers of other hosts: a ROUTER over TCP, encrypted, open to who has the key alone.

CurveZMQ proves to a worker that the coordinator is the right one; ZAP (ZeroMQ RFC 27) asks here whether the worker's
key is the one of the key file. Connections that come to nothing are counted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from typing import Protocol

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from mpconv.model.errors import Fatal
from mpconv.protocol.acceptance import HANDSHAKE, QUEUE, Acceptance
from mpconv.protocol.codec import MAX_FRAME
from mpconv.protocol.descriptors import share
from mpconv.protocol.keys import Listening
from mpconv.protocol.link import Link

_ZAP = "inproc://zeromq.zap.01"
_WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_LOOK = 0.25
_STRANGERS = 8, 16, 512
"""One in so many descriptors is for them, within these bounds."""
_LINGER_MS = 1000
_NOT_OURS = ": this host has no such address: choose one that it has, or tcp://*:PORT for all of them"
_HINTS = {
    errno.EADDRINUSE: ": another program has this port, another mpconv perhaps: choose another port",
    errno.EADDRNOTAVAIL: _NOT_OURS,
    errno.ENODEV: _NOT_OURS,
    errno.EACCES: ": ports below 1024 are root's: choose a higher one",
}
"""What to do when a socket cannot be bound."""
"""So long what was said last, Bye, may take to leave."""


class Door(Protocol):
    """Where one coordinator's workers of other hosts come in: a gate of its own, or its part of one. `again`: when they
    are sent away, others of their hosts are to come instead.
    """

    @property
    def again(self) -> bool: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def refused(self) -> int: ...
    @property
    def dropped(self) -> int: ...

    def send(self, name: bytes, frame: bytes) -> None: ...

    def unfit(self, name: bytes) -> bool:
        """That worker cannot take part in this job. True: in another one it may."""

    def close(self) -> None: ...


class Gate:
    """`receive` as a Link's. Fatal when nobody can listen there."""

    again = False

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], listening: Listening, receive: Callable[[list[bytes]], None]
    ) -> None:
        self._key = z85.decode(listening.keys.worker_public)
        self._accepted = self._admitted = 0
        self._zap = Link(context, zmq.ROUTER, self._judge)
        self._zap.socket.bind(_ZAP)
        self._link = Link(context, zmq.ROUTER, receive)
        socket = self._link.socket
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(HANDSHAKE * 1000))
        socket.setsockopt(zmq.BACKLOG, QUEUE)
        socket.setsockopt(zmq.ZAP_DOMAIN, b"mpconv")
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, listening.keys.coordinator_secret.encode())
        self._monitor = Link(context, zmq.PAIR, self._count)
        self._acceptance: Acceptance | None = None
        self._again: asyncio.TimerHandle | None = None
        watched = f"inproc://gate-{id(self)}"
        socket.monitor(watched, _WATCHED)
        self._monitor.socket.connect(watched)
        try:
            _bind(socket, listening)
        except Fatal:
            self.close()
            raise
        self._acceptance = Acceptance(socket, share(*_STRANGERS), time.monotonic)
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        for link in (self._zap, self._monitor, self._link):
            link.start()
        self._look()

    def _look(self) -> None:
        if self._acceptance is not None:
            self._acceptance.look()
            self._again = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _judge(self, frames: list[bytes]) -> None:
        envelope, version, request, mechanism = frames[0], frames[2], frames[3], frames[7]
        known = mechanism == b"CURVE" and frames[8:] == [self._key]
        code, text = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._zap.send(envelope, b"", version, request, code, text, b"", b"")

    def _count(self, frames: list[bytes]) -> None:
        told = parse_monitor_message(frames)
        event = told["event"]
        if self._acceptance is not None:
            self._acceptance.heard(event, told["value"])
        self._accepted += event == zmq.EVENT_ACCEPTED
        self._admitted += event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    @property
    def refused(self) -> int:
        """Connections that never proved to be a worker's."""
        return self._accepted - self._admitted

    @property
    def dropped(self) -> int:
        """Frames that were no messages."""
        return self._link.dropped

    def send(self, name: bytes, frame: bytes) -> None:
        """To the worker of that name, if it is still connected."""
        self._link.send(name, frame)

    def unfit(self, name: bytes) -> bool:
        """There is one job alone."""
        return False

    def close(self) -> None:
        """What was said last still goes out."""
        if self._again is not None:
            self._again.cancel()
        if self._acceptance is not None:
            self._acceptance.close()
            self._acceptance = None
        self._link.socket.disable_monitor()
        self._link.close(_LINGER_MS)
        self._monitor.close()
        self._zap.close()


def check(listening: Listening) -> None:
    """Fatal when nobody can listen there: to be known before a target is made or emptied."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    try:
        _bind(socket, listening)
    finally:
        socket.close(linger=0)
        context.term()


def _bind(socket: zmq.Socket[bytes], listening: Listening) -> None:
    socket.setsockopt(zmq.IPV6, int("[" in listening.endpoint))
    try:
        socket.bind(listening.endpoint)
    except zmq.ZMQError as error:
        number = error.errno or 0
        why = os.strerror(number) if number in _HINTS else str(error.strerror)
        raise Fatal(f"--listen: cannot listen at {listening.endpoint}: {why}{_HINTS.get(number, '')}") from None
