"""One pool of workers for many jobs: processes of this host, and those of other hosts that come in by one gate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import zmq
from msgspec import Struct

from mpconv.coordination.remote_roster import SILENT_FENCES, other_version
from mpconv.jobs.fanout.schedule import Division, Flow, divide
from mpconv.protocol import messages
from mpconv.protocol.codec import decode_from_worker, encode
from mpconv.protocol.gate import Gate
from mpconv.protocol.keys import Listening
from mpconv.workers.launch.local import LocalWorkers, WorkerShare
from mpconv.workers.launch.provider import PoolClient

_TICK = 1.0
_FAREWELL = 3.0
"""Seconds for which workers are awaited that were sent away to come again, so that they are told that all is over."""
_LOOK = 0.02


class IdleWorker(Struct, kw_only=True):
    """A worker of another host, by the name that the gate gave it. `heard`: when, in seconds of the loop's clock, while
    it has no job. `lot`: whose it is.
    """

    hello: list[bytes]
    host: str
    number: int
    heard: float
    lot: JobShare | None = None


class JobShare(WorkerShare):
    """A job's part of the pool, and its part of the gate, for one attempt."""

    again = True
    refused = dropped = 0

    def __init__(self, pool: Pool, local: LocalWorkers, name: str, flow: Flow) -> None:
        super().__init__(local)
        self._pool = pool
        self.name = name
        self.flow = flow
        self.employer: PoolClient | None = None
        self.welcoming = False
        self.unwelcome: set[str] = set()

    def share(self, most: int, *, guests: bool) -> int:
        return self._pool.share(self.name, most, guests=guests)

    def attach(self, employer: PoolClient, *, guests: bool) -> JobShare:
        self.employer = employer
        self.welcoming = guests
        self._pool.changed()
        return self

    async def stop(self, grace: float) -> None:
        await super().stop(grace)
        self.employer = None
        self._pool.released(self)

    @property
    def endpoint(self) -> str:
        return self._pool.endpoint

    def send(self, name: bytes, frame: bytes) -> None:
        self._pool.send(name, frame)

    def unfit(self, name: bytes) -> bool:
        """Its host gets no part in this job any more; in others it may."""
        self.unwelcome.add(self._pool.host_of(name))
        return True

    def close(self) -> None:
        """The gate is the pool's."""


class Pool:
    """`total` processes of this host; `listening`: where those of other hosts may come in, `each` of a host at most if
    not None. `expected`: tells how many jobs run or are about to. `rate` and `servers`: as Limits'. `listens`: hears
    where those of other hosts may come in from now on.
    """

    def __init__(
        self,
        local: LocalWorkers,
        total: int,
        expected: Callable[[], int],
        *,
        listening: Listening | None = None,
        each: int | None = None,
        rate: int = 0,
        servers: Mapping[str, int] | None = None,
        warn: Callable[[str], None] = lambda text: None,
        listens: Callable[[str], None] = lambda endpoint: None,
    ) -> None:
        self._local = local
        self._division = Division(total)
        self._expected = expected
        self._listening = listening
        self._each = each
        self._rate = rate
        self._servers = servers or {}
        self._warn = warn
        self._listens = listens
        self._total = total
        self._lots: dict[str, JobShare] = {}
        self._visitors: dict[bytes, IdleWorker] = {}
        self._over: set[bytes] = set()
        self._coming = 0
        self._closing = False
        self._gate: Gate | None = None
        self._due: asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._listening is not None:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            try:
                self._gate = Gate(self._context, self._listening, self._receive)
            except BaseException:
                self._context.term()
                raise
            self._ticking = self._loop.create_task(self._tick())
            self._listens(self._gate.endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Bye to all; then nobody is left."""
        self._closing = True
        if self._due is not None:
            self._due.cancel()
        if self._gate is not None:
            await self._dismiss(self._gate)
        await self._local.stop(0)

    @property
    def deserted(self) -> bool:
        """Whether nobody works, here or elsewhere."""
        return not self._total and not self._visitors

    async def _dismiss(self, gate: Gate) -> None:
        for name in self._visitors:
            self.send(name, encode(messages.Bye()))
        until = self._loop.time() + _FAREWELL
        while (self._coming or self._visitors) and self._loop.time() < until:
            await asyncio.sleep(_LOOK)
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)
        if gate.refused:
            why = "they had no key of ours: do all hosts have this key file?"
            self._warn(f"{gate.refused} connections to {gate.endpoint} were refused: {why}")
        gate.close()
        self._context.term()

    @property
    def endpoint(self) -> str:
        """Where workers of other hosts connect."""
        assert self._gate is not None
        return self._gate.endpoint

    def lot(self, name: str, flow: Flow) -> JobShare:
        """For a job that begins."""
        self._lots[name] = JobShare(self, self._local, name, flow)
        return self._lots[name]

    def end(self, lot: JobShare) -> None:
        """That job's attempt is over."""
        del self._lots[lot.name]
        self._division.release(lot.name)
        self.changed()

    def share(self, name: str, most: int, *, guests: bool) -> int:
        """Processes of this host. Without any, one does what no other host can."""
        if not self._division.total:
            return 0 if guests else min(most, 1)
        return self._division.share(name, most, self._expected())

    def released(self, lot: JobShare) -> None:
        """It has no worker any more."""
        self._division.release(lot.name)
        for name in [name for name, visitor in self._visitors.items() if visitor.lot is lot]:
            self._forget(name)
            self._coming += 1
        self.changed()

    def changed(self) -> None:
        """Jobs began or ended: soon everything is divided anew."""
        if self._due is None and not self._closing:
            self._due = self._loop.call_soon(self._divide)

    def _divide(self) -> None:
        self._due = None
        running = {name: lot for name, lot in self._lots.items() if lot.employer is not None}
        flows = {name: lot.flow for name, lot in running.items()}
        for name, rate in divide(flows, self._rate, self._servers).items():
            employer, flow = running[name].employer, flows[name]
            assert employer is not None
            shared = self._rate or any(server in self._servers for server in flow.servers)
            employer.limit(rate, refunds=not shared)
        weights = {name: flow.weight for name, flow in flows.items()}
        for name, count in self._division.more(weights, self._expected()).items():
            employer = running[name].employer
            assert employer is not None
            employer.add_workers(count)
        self._assign()

    def send(self, name: bytes, frame: bytes) -> None:
        """To the worker of that name."""
        if self._gate is not None:
            self._gate.send(name, frame)

    def host_of(self, name: bytes) -> str:
        """The host of a worker that is here."""
        return self._visitors[name].host

    def _receive(self, frames: list[bytes]) -> None:
        name = frames[0]
        visitor = self._visitors.get(name)
        if visitor is not None and visitor.lot is not None:
            if visitor.lot.employer is not None:
                visitor.lot.employer.hear(frames)
            return
        message = decode_from_worker(frames[-1])
        if name in self._over:
            return
        match message:
            case messages.Hello():
                self._hello(frames, message)
            case messages.Alive(count) if visitor is not None:
                visitor.heard = self._loop.time()
                self.send(name, encode(messages.Heard(count)))
            case messages.Leaving() if visitor is not None:
                self.send(name, encode(messages.Bye()))
            case messages.Gone() if visitor is not None:
                self._forget(name)

    def _hello(self, frames: list[bytes], hello: messages.Hello) -> None:
        name = frames[0]
        if hello.version != messages.VERSION:
            warning, refusal = other_version(hello.host, hello.version, messages.VERSION)
            self._warn(warning)
            self.send(name, encode(messages.Refused(refusal)))
            return
        self._outlived(name, hello)
        self._coming = max(0, self._coming - 1)
        now = self._loop.time()
        self._visitors[name] = IdleWorker(hello=frames, host=hello.host, number=hello.number, heard=now)
        if self._closing:
            self.send(name, encode(messages.Bye()))
            return
        self._assign()
        if self._visitors[name].lot is None:
            assert self._listening is not None
            self.send(name, encode(messages.Wait(self._listening.fence)))

    def _outlived(self, by: bytes, hello: messages.Hello) -> None:
        """Whoever said hello last knows which workers of its host have ended; and it has ended itself under any name
        that it had before, since it was never answered there.
        """
        over = [*hello.dead, hello.number]
        for lot in self._lots.values():
            if lot.employer is not None:
                lot.employer.reaped(hello.host, over)
        for name, visitor in list(self._visitors.items()):
            if visitor.host == hello.host and visitor.number in over and name != by:
                self._forget(name)

    def _forget(self, name: bytes) -> None:
        self._visitors.pop(name, None)
        self._over.add(name)

    def _assign(self) -> None:
        """Each that waits goes to the job that has the fewest for its weight."""
        if self._closing:
            return
        for visitor in list(self._visitors.values()):
            if visitor.lot is None and self._may_work(visitor.host):
                lots = [lot for lot in self._lots.values() if lot.welcoming and visitor.host not in lot.unwelcome]
                hiring = [lot for lot in lots if lot.employer is not None and lot.employer.hiring]
                having = [(lot.employer.guests / lot.flow.weight, lot) for lot in hiring if lot.employer is not None]
                if having:
                    _, visitor.lot = min(having, key=lambda one: one[0])
                    assert visitor.lot.employer is not None
                    visitor.lot.employer.hear(visitor.hello)

    def _may_work(self, host: str) -> bool:
        working = [visitor for visitor in self._visitors.values() if visitor.host == host and visitor.lot is not None]
        return self._each is None or len(working) < self._each

    async def _tick(self) -> None:
        """Who waits for a job and is not heard of has stopped."""
        while True:
            await asyncio.sleep(_TICK)
            assert self._listening is not None
            since = self._loop.time() - SILENT_FENCES * self._listening.fence
            for name in [name for name, one in self._visitors.items() if one.lot is None and one.heard < since]:
                self._forget(name)
