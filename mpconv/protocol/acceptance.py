"""How many strangers may be at the gate at once. libzmq accepts whoever comes, until no descriptor is left, and ends
the process where it then needs one of its own.

Who says nothing costs no descriptor: the kernel hands over a connection once there is something to read
(TCP_DEFER_ACCEPT), and workers speak first. Who speaks and proves nothing is cut off by libzmq after HANDSHAKE seconds;
while there are `most` of these the socket does not listen. Others wait in the kernel's queue meanwhile, in turn.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import zmq

HANDSHAKE = 5.0
"""Seconds that a connection may take to prove that it is a worker's: four round trips."""
QUEUE = 4096
DEFERRED = 3600
"""Seconds for which the kernel keeps those who say nothing."""
_LATER = 1.0
"""Seconds after which a connection that is still there has proved it, even if that was not heard of."""


class Acceptance:
    """Of a socket that is bound. `most`: strangers at once."""

    def __init__(self, gate: zmq.Socket[bytes], most: int, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._most = most
        self._clock = clock
        self._strangers: dict[int, float] = {}
        self._endpoint = gate.getsockopt_string(zmq.LAST_ENDPOINT)
        self._listening = _listener(self._endpoint)
        self._paused = False

    def heard(self, event: int, descriptor: int) -> None:
        """What the socket's monitor tells. Who has proved to be a worker's is told without the descriptor."""
        if event == zmq.EVENT_ACCEPTED:
            self._strangers[descriptor] = self._clock()
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if self._strangers:
                self._strangers.popitem()
        elif event == zmq.EVENT_DISCONNECTED:
            self._strangers.pop(descriptor, None)
        self.look()

    def look(self) -> None:
        """Now and then."""
        old = self._clock() - HANDSHAKE - _LATER
        for descriptor in [one for one, since in self._strangers.items() if since < old]:
            del self._strangers[descriptor]
        if not self._paused and len(self._strangers) >= self._most:
            self._gate.unbind(self._endpoint)
            self._paused = True
        elif self._paused and len(self._strangers) <= self._most // 2:
            self._gate.setsockopt(zmq.USE_FD, os.dup(self._listening.fileno()))
            self._gate.bind(self._endpoint)
            self._paused = False

    def close(self) -> None:
        self._listening.close()


def _listener(endpoint: str) -> socket.socket:
    """Another descriptor for the listening socket that libzmq has made for this endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or the directory itself
            continue
        if _is(found, host.strip("[]"), int(port)):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFERRED)
            return found
        found.close()
    raise AssertionError(f"nothing listens at {endpoint}")


def _is(found: socket.socket, host: str, port: int) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        return False
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    at = found.getsockname()
    return bool(at[0] == host and at[1] == port)
