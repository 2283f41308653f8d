"""The coordinator's part that deals with workers of other hosts: a gate of their own, hello, silence, goodbye."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import msgspec
import zmq

from mpconv.coordination.observer import Listener, Observer
from mpconv.coordination.remote_roster import SILENT_FENCES, RemoteRoster, RemoteWorkerEntry, other_version
from mpconv.core import events
from mpconv.core.leases import LeaseState
from mpconv.core.state import CoordinatorState
from mpconv.model.errors import Deserted, MpconvError, ProtocolError, StatusWithdrawn, WorkerLost, internal
from mpconv.protocol import messages
from mpconv.protocol.codec import decode_from_worker
from mpconv.protocol.failures import error_of
from mpconv.protocol.job import Job

if TYPE_CHECKING:
    from mpconv.protocol.gate import Door
    from mpconv.protocol.keys import Listening

GUEST = "tcp:"
"""Before the names of workers on other hosts: another socket gives them."""
STOP_TOLD = 1.0
"""Seconds that a stop may take before people are told what it waits for."""
_REQUESTS = 4
"""Buffers in flight of each: what one process drives without effort."""
_FAREWELL = 1.0
"""Seconds that those which write nothing may take to hear Bye."""
_LOOK = 0.02


class RemoteGroup:
    """Lets others in if it is `listening`. The coordinator gives it the rest."""

    _job: Job
    _state: CoordinatorState
    _observer: Observer
    _listener: Listener | None
    _dropped: set[int]
    _loop: asyncio.AbstractEventLoop

    def __init__(self, listening: Listening | None) -> None:
        self._listening = listening
        self._gate: Door | None = None
        self._guests = RemoteRoster(SILENT_FENCES * listening.fence if listening is not None else 0.0)

    @property
    def _over(self) -> bool:
        raise NotImplementedError

    def _handle(self, event: events.Event) -> None:
        raise NotImplementedError

    def _lose(self, event: events.WorkerDead | events.Restarted) -> None:
        raise NotImplementedError

    def _take_work(self, name: str, message: messages.FromWorker) -> None:
        raise NotImplementedError

    def _fail(self, error: MpconvError) -> None:
        raise NotImplementedError

    def _give_up(self, error: Deserted) -> None:
        raise NotImplementedError

    def _send(self, name: str, message: messages.FromCoordinator) -> None:
        raise NotImplementedError

    @property
    def guests(self) -> int:
        """How many workers of other hosts take part."""
        return len(self._guests)

    def limit(self, per_second: int, *, refunds: bool) -> None:
        """As RateLimited says it."""
        self._handle(events.RateLimited(per_second, refunds))

    def reaped(self, host: str, numbers: list[int]) -> None:
        """These workers of that host have ended."""
        for guest in self._guests.of(host, numbers):
            self._part(guest)

    def _open_gate(self, context: zmq.Context[zmq.Socket[bytes]], shared: Door | None) -> None:
        if self._listening is None:
            return
        if shared is not None:
            self._gate = shared
            return
        from mpconv.protocol.gate import Gate  # noqa: PLC0415  (copies on one host do without)

        self._gate = Gate(context, self._listening, self.hear)
        self._observer.listens(self._gate.endpoint, self._give_up)

    def _close_gate(self) -> int:
        """How many frames of workers it dropped."""
        if self._gate is None:
            return 0
        if self._gate.refused:
            at = self._gate.endpoint
            why = "they had no key of ours: do all hosts have this key file?"
            self._observer.warn(f"{self._gate.refused} connections to {at} were refused: {why}")
        self._gate.close()
        return self._gate.dropped

    def hear(self, frames: list[bytes]) -> None:
        """A frame from a worker of another host, after its name."""
        name, message = GUEST + frames[0].decode("latin-1"), decode_from_worker(frames[-1])
        try:
            self._take_guest(name, message)
        except ProtocolError as error:
            why = "install the same mpconv on all hosts, or report it"
            self._fail(WorkerLost(f"a worker on another host sent what none sends ({error}): {why}"))
        except Exception as error:
            self._fail(internal(error, "the coordinator"))

    def _take_guest(self, name: str, message: messages.FromWorker) -> None:
        guest = self._guests.heard(name, self._loop.time())
        match message:
            case messages.Hello():
                self._guest_hello(name, message)
            case _ if guest is None:
                pass  # its name is over
            case messages.Alive(count):
                self._handle(events.SignOfLife(name))
                self._send(name, messages.Heard(count))
            case messages.Leaving():
                self._handle(events.Leaving(name))
            case messages.Gone():
                self._part(guest)
            case messages.Failed() if not guest.working:
                error = error_of(message)
                self._observer.warn(f"{guest} cannot take part: {error}")
                if self._gate is not None and self._gate.unfit(_wire(name)):
                    self._send(name, messages.Bye(again=True))
                else:
                    self._send(name, messages.Refused(f"this host cannot take part: {error}"))
                self._part(guest)
            case messages.Failed():
                self._fail(error_of(message))
            case _:
                guest.working |= isinstance(message, messages.Want)
                self._take_work(name, message)

    def _guest_hello(self, name: str, hello: messages.Hello) -> None:
        if hello.version != messages.VERSION:
            warning, refusal = other_version(hello.host, hello.version, messages.VERSION)
            self._observer.warn(warning)
            self._send(name, messages.Refused(refusal))
            return
        again = self._guests.get(name) is not None
        guest = self._guests.hello(name, hello.host, hello.number, self._loop.time())
        if guest is None:
            return
        if self._over:
            self._send(name, messages.Bye(again=self._again))
            return
        if self._listener is not None:
            self._listener.hello(name, guest.label)
        for dead in self._guests.outlived(guest, hello.dead):
            self._part(dead)
        if again:
            self._lose(events.Restarted(name))
        else:
            self._handle(events.WorkersExpected(1))
        assert self._listening is not None
        job = msgspec.structs.replace(self._job, requests=_REQUESTS, dropped=sorted(self._dropped))
        self._send(name, messages.Open(job, self._listening.fence, insist=again))

    def _part(self, guest: RemoteWorkerEntry) -> None:
        """It has stopped: what it held, and what it did not flush, is done again."""
        self._guests.ended(guest.name)
        self._lose(events.WorkerDead(guest.name))
        self._handle(events.WorkersExpected(-1))

    def _send_to_guest(self, name: str, frame: bytes) -> None:
        if self._gate is not None:
            self._gate.send(_wire(name), frame)

    @property
    def _again(self) -> bool:
        return self._gate is not None and self._gate.again

    def _look_after_guests(self) -> None:
        for guest in self._guests.silent(self._loop.time()):
            silence = self._guests.silence
            self._observer.warn(f"{guest} was silent for {silence:g} seconds: it has stopped, others do its work again")
            self._part(guest)

    async def _dismiss_guests(self, error: BaseException | None) -> None:
        """Bye to all. Who may be writing is waited for: the target is nobody else's before all have stopped."""
        for guest in self._guests:
            self._send(guest.name, messages.Bye(again=self._again or isinstance(error, StatusWithdrawn)))
        live = self._state.leases.live.values()
        writing = {lease.worker for lease in live if lease.state is not LeaseState.LEASED}
        until = self._loop.time() + _FAREWELL
        told = self._loop.time() + STOP_TOLD
        while left := [guest for guest in self._guests if guest.name in writing or self._loop.time() < until]:
            await asyncio.sleep(_LOOK)
            now = self._loop.time()
            if now > told and writing:
                wait = f"{self._guests.silence:g} seconds at most"
                self._observer.warn(f"waiting for {len(left)} workers on other hosts to stop, {wait}")
                told = math.inf
            for guest in self._guests.silent(now):
                self._guests.ended(guest.name)


def _wire(name: str) -> bytes:
    """What the gate's socket calls it."""
    return name.removeprefix(GUEST).encode("latin-1")
