"""Many workers in one process, as a coordinator sees them: each has a connection of its own, takes leases, and reports
each done a while after it came. They read and write nothing. Reads its orders from standard input, as JSON.
"""

from __future__ import annotations

import heapq
import os
import resource
import select
import sys
import time
from collections import deque

import msgspec
import zmq

from mpconv.protocol import messages
from mpconv.protocol.codec import decode_from_coordinator, encode
from mpconv.workers.remote_worker import prepare


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """`latency`: seconds from a lease to its Done; `leases`: how many each of the `workers` holds at a time."""

    endpoint: str
    coordinator_public: str
    worker_public: str
    worker_secret: str
    name: str
    workers: int
    leases: int
    latency: float
    fence: float


class Crowd:
    """Serves until the coordinator says Bye to all."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, orders.workers + 100)
        self._epoll = select.epoll()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._due: deque[tuple[float, int, int]] = deque()
        self._beats: list[tuple[float, int, int]] = []

    def serve(self) -> None:
        """Hello from each, then what the coordinator says."""
        for number in range(self._orders.workers):
            self._add(number)
        while self._sockets:
            now = time.monotonic()
            until = min(self._due[0][0] if self._due else now + 1, self._beats[0][0] if self._beats else now + 1)
            for at, _ in self._epoll.poll(max(0.0, until - now), maxevents=256):
                self._listen(at)
            self._work(time.monotonic())

    def _add(self, number: int) -> None:
        orders = self._orders
        socket = self._context.socket(zmq.DEALER)
        prepare(socket, orders.worker_public, orders.worker_secret, orders.coordinator_public)
        socket.setsockopt(zmq.IMMEDIATE, 0)  # hello waits for the connection
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(orders.endpoint)
        at = int(socket.getsockopt(zmq.FD))
        self._sockets[at] = socket
        self._epoll.register(at, select.EPOLLIN | select.EPOLLET)
        self._say(at, messages.Hello(messages.VERSION, os.getpid(), orders.name, number))
        self._listen(at)

    def _say(self, at: int, message: messages.FromWorker) -> None:
        self._sockets[at].send(encode(message), zmq.NOBLOCK)

    def _listen(self, at: int) -> None:
        """Everything that lies in the socket: its descriptor tells once."""
        socket = self._sockets.get(at)
        while socket is not None and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            match decode_from_coordinator(socket.recv(zmq.NOBLOCK)):
                case messages.LeaseGrant(_, epoch):
                    self._due.append((time.monotonic() + self._orders.latency, at, epoch))
                case messages.Open():
                    for _ in range(self._orders.leases):
                        self._say(at, messages.Want(1))
                    heapq.heappush(self._beats, (time.monotonic() + self._orders.fence / 5, at, 1))
                case messages.Flush(job):
                    self._say(at, messages.FlushDone(job))
                case messages.Bye():
                    self._say(at, messages.Gone())
                    self._epoll.unregister(at)
                    self._sockets.pop(at).close()
                    return

    def _work(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, at, epoch = self._due.popleft()
            if at in self._sockets:
                self._say(at, messages.Want(1))
                self._say(at, messages.Done(1, epoch, 0))
                self._listen(at)
        while self._beats and self._beats[0][0] <= now:
            _, at, count = heapq.heappop(self._beats)
            if at in self._sockets:
                self._say(at, messages.Alive(count))
                heapq.heappush(self._beats, (now + self._orders.fence / 5, at, count + 1))
                self._listen(at)


def main() -> None:
    """The program."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Crowd(msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)).serve()


if __name__ == "__main__":
    main()
