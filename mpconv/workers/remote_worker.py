"""A worker on another host than its coordinator, which cannot kill it: it fences itself.

It counts from when it sent the last heartbeat that the coordinator has answered. When the fence is reached it ends, and
if it does not get to that, since its loop stands still, the kernel ends the process by SIGALRM a moment later. Its
connections are reset by that, so nothing it wrote is sent any more (PROTOCOL.md, "Workers on other hosts").
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import msgspec
import zmq

from mpconv.protocol import messages
from mpconv.protocol.codec import encode
from mpconv.protocol.job import Job
from mpconv.protocol.link import Link
from mpconv.transports.native import loop as pump
from mpconv.workers.own_files import permitted
from mpconv.workers.worker import Worker

BYE, REFUSED, AGAIN, CUT_OFF = 0, 3, 4, 5
"""Exit codes: the job is over, or it has left; it cannot take part; new workers are to come; there is no
coordinator.
"""
_BEATS = 5
"""Heartbeats within one fence; and so much later than at the fence comes the kernel."""
_LOOK = 0.1
_ANSWER = 5.0
"""Seconds that an answer to hello may take on a connection that is there."""
_PATIENCE = 15.0
"""Seconds for which a coordinator that was there a moment ago is looked for."""
_LINGER_MS = 1000


class Summons(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with; it has secrets. `host`: who starts it; `dead`: which of those are reaped.
    `files`: the directories of own_files.permitted.
    """

    endpoint: str
    coordinator_public: str
    worker_public: str
    worker_secret: str
    host: str
    number: int
    dead: list[int]
    files: list[str] | None = None

    @property
    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def parsed(cls, text: str) -> Summons:
        return msgspec.json.decode(text, type=cls)


def prepare(socket: zmq.Socket[bytes], public: str, secret: str, coordinator: str) -> None:
    """A DEALER that talks to that coordinator alone, and has no queue while it is not connected."""
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret.encode())
    socket.setsockopt(zmq.CURVE_SERVERKEY, coordinator.encode())


class RemoteWorker(Worker):
    """Serves one coordinator on another host, as `code` tells until the job is over or it is cut off."""

    def __init__(self, summons: Summons, parent_sentinel: int | None) -> None:
        super().__init__(summons.endpoint, parent_sentinel)
        self._summons = summons
        self._met = asyncio.Event()
        self._fence = 0.0
        self._count = 0
        self._sent: dict[int, float] = {}
        self._deadline = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self.code = BYE
        pump.be_fenced()

    def _permitted(self, job: Job) -> Job:
        return permitted(job, self._summons.files)

    async def _meet(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Until hello is answered. Each try has a name of its own: one that is not answered may be known there."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        until = loop.time() + _PATIENCE
        while not self._over.is_set():
            self._link = Link(context, zmq.DEALER, self._receive)
            summons = self._summons
            prepare(self._link.socket, summons.worker_public, summons.worker_secret, summons.coordinator_public)
            self._link.socket.connect(self._endpoint)
            self._link.start()
            if await self._answered(until):
                return
            self._link.close()
            if loop.time() > until:
                self._finish(CUT_OFF)

    async def _answered(self, until: float) -> bool:
        loop = asyncio.get_running_loop()
        said_at: float | None = None
        while not self._over.is_set() and not self._met.is_set():
            if said_at is None and self._say_hello():
                said_at = loop.time()
            if loop.time() > (until if said_at is None else said_at + _ANSWER):
                break
            await asyncio.sleep(_LOOK)
        return self._met.is_set()

    def _say_hello(self) -> bool:
        summons = self._summons
        hello = messages.Hello(messages.VERSION, os.getpid(), summons.host, summons.number, summons.dead)
        try:
            self._link.send(encode(hello))
        except zmq.Again:
            return False
        return True

    def _greet(self) -> None:
        """It has lost a target."""
        if not self._say_hello():
            self._finish(CUT_OFF)

    def _send(self, message: messages.FromWorker) -> None:
        try:
            super()._send(message)
        except zmq.Again:  # the connection is gone, and with it the name
            self._finish(CUT_OFF)

    def _hear(self, message: messages.FromCoordinator) -> None:
        match message:
            case messages.Heard(count):
                self._heard(count)
            case messages.Refused(why):
                print(f"mpconv: {why}", file=sys.stderr)
                self._finish(REFUSED)
            case messages.Bye(again):
                self._finish(AGAIN if again else BYE)
            case messages.Wait(fence) if not self._met.is_set():
                self._begin(fence)
            case messages.Open(_, fence) if not self._met.is_set():
                self._begin(fence)
                super()._hear(message)
            case _:
                super()._hear(message)

    def _begin(self, fence: float) -> None:
        self._fence = fence
        self._met.set()
        self._may_go_on_until(_now() + fence)

    def _heard(self, count: int) -> None:
        sent = self._sent.get(count)
        if sent is not None:
            self._sent = {later: when for later, when in self._sent.items() if later > count}
            self._may_go_on_until(sent + self._fence)

    def _may_go_on_until(self, deadline: float) -> None:
        self._deadline = deadline
        left = deadline - _now()
        signal.setitimer(signal.ITIMER_REAL, max(0.001, left + self._fence / _BEATS))
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_later(max(0.0, left), self._finish, CUT_OFF)

    async def _heartbeat(self) -> None:
        while True:
            if _now() > self._deadline:
                self._finish(CUT_OFF)
            self._count += 1
            self._sent[self._count] = _now()
            self._send(messages.Alive(self._count))
            await asyncio.sleep(self._fence / _BEATS)

    def _leave(self) -> None:
        """What it may write it still writes; then the coordinator says Bye."""
        if self._met.is_set():
            self._send(messages.Leaving())
        else:
            self._finish(BYE)

    def _finish(self, code: int) -> None:
        if not self._over.is_set():
            self.code = code
            self._over.set()

    def _part(self) -> None:
        self._send(messages.Gone())
        self._link.close(linger_ms=_LINGER_MS)


def _now() -> float:
    """Seconds, those in which the host was suspended too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
