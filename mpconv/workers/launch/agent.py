"""This host's workers for a coordinator on another one: started, started again, and ended with the job."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections import deque
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from mpconv.model.errors import Fatal, Unreachable, WorkerLost
from mpconv.protocol.keys import Keys
from mpconv.protocol.link import Link
from mpconv.protocol.messages import MAX_DEAD
from mpconv.transports.reachability import addresses_of, why_unreachable
from mpconv.workers.launch import parent_death
from mpconv.workers.launch.local import LocalWorkers
from mpconv.workers.launch.signals import Wishes
from mpconv.workers.remote_worker import AGAIN, BYE, CUT_OFF, REFUSED, Summons, prepare

_EACH = 2
_FEWEST = 3
"""Deaths that are no fences: so many for each worker, and at least so many, are made good."""
_TRIES = 3
"""Times that an encrypted greeting comes to nothing until it is no accident."""
_SOON = 2.0
"""Seconds without a coordinator after which people are told that it is waited for."""
_GRACE = 3.0
_ORPHANED = 10.0
"""Seconds that workers may take to leave when the process that wanted them has ended."""
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class Agent:
    """Keeps `count` workers at the coordinator's disposal. `wait`: seconds for which a coordinator is looked for, None:
    for ever. `stay`: after a job the next one is waited for, without end. `tell`: hears what people should know.
    """

    def __init__(
        self,
        endpoint: str,
        keys: Keys,
        count: int,
        local: LocalWorkers,
        tell: Callable[[str], None],
        *,
        wait: float | None,
        stay: bool,
        files: list[str] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._count = count
        self._local = local
        self._tell = tell
        self._wait = wait
        self._stay = stay
        self._files = files
        self._orphaned = False
        self._found_at = endpoint
        self._name = f"{socket.gethostname()[:200]}/{secrets.token_hex(8)}"
        self._last = 0
        self._running: dict[int, int] = {}
        self._dead: deque[int] = deque(maxlen=MAX_DEAD)
        self._deaths = 0
        self._job_over = False
        self._leaving = False
        self._error: Fatal | None = None
        self._changed = asyncio.Event()

    async def serve(self) -> None:
        """Until the job is over, or by SIGTERM, SIGHUP or SIGINT: then what is being written ends first; the second
        time it ends at once. Fatal when there is no coordinator, or it refuses these workers.
        """
        wishes = Wishes(last=True)
        wishes.begin(lambda _: self._leave())
        asyncio.get_running_loop().add_signal_handler(parent_death.ENDED, self._leave_soon)
        try:
            await self._serve()
        finally:
            await self._local.stop(0 if self._leaving else _GRACE)
            wishes.end()

    async def _serve(self) -> None:
        while not self._leaving:
            self._job_over = False
            while not self._leaving and self._error is None and not (self._job_over and not self._running):
                if not self._job_over and len(self._running) < self._count and await self._is_there():
                    for _ in range(self._count - len(self._running)):
                        self._start()
                if self._running and self._error is None:
                    self._changed.clear()
                    await self._changed.wait()
            while self._leaving and self._running:
                self._changed.clear()
                await self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._stay:
                return

    def _start(self) -> None:
        self._last += 1
        summons = Summons(
            endpoint=self._found_at,
            coordinator_public=self._keys.coordinator_public,
            worker_public=self._keys.worker_public,
            worker_secret=self._keys.worker_secret,
            host=self._name,
            number=self._last,
            dead=list(self._dead),
            files=self._files,
        )
        [pid] = self._local.start(1, summons.text, self._ended)
        self._running[pid] = self._last

    def _ended(self, pid: int, code: int | None) -> None:
        number = self._running.pop(pid)
        self._dead.append(number)
        self._changed.set()
        if code is None:
            self._error = WorkerLost("the process that starts the workers ended: see dmesg, was memory short?")
        elif code == BYE:
            self._job_over = True
        elif code == REFUSED:
            self._error = Fatal(f"the coordinator at {self._endpoint} refuses the workers of this host")
        elif code in (CUT_OFF, -signal.SIGALRM):
            self._tell(f"worker {number} was cut off from its coordinator and has stopped")
        elif code != AGAIN and not self._leaving:
            self._deaths += 1
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._tell(f"worker {number} (pid {pid}) ended ({why})")
            if self._deaths > max(_FEWEST, _EACH * self._count):
                self._error = WorkerLost(
                    f"{self._deaths} workers ended before their work was done: see dmesg, was memory short?"
                )

    def _leave_soon(self) -> None:
        """The process that wanted these workers has ended, and they are not to outlive it for long."""
        if not self._orphaned:
            self._orphaned = True
            if not self._leaving:
                self._leave()
            asyncio.get_running_loop().call_later(_ORPHANED, self._leave)

    def _leave(self) -> None:
        """The second time without ceremony."""
        if self._leaving:
            for pid in self._running:
                self._local.kill(pid)
        self._leaving = True
        self._local.dismiss()
        self._changed.set()

    async def _is_there(self) -> bool:
        """Wait for a coordinator. False: there is no need any more. Unreachable when nobody comes, Fatal when it is not
        ours.
        """
        loop = asyncio.get_running_loop()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        heard: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        link = Link(context, zmq.DEALER, lambda _: None)
        keys = self._keys
        prepare(link.socket, keys.worker_public, keys.worker_secret, keys.coordinator_public)
        watched = "inproc://knock"
        link.socket.monitor(watched, _EVENTS)
        monitor = Link(context, zmq.PAIR, lambda frames: heard.put_nowait(_told(frames)))
        monitor.socket.connect(watched)
        monitor.start()
        for endpoint in await self._endpoints():
            link.socket.connect(endpoint)
        told = loop.call_later(_SOON, self._tell, f"waiting for a coordinator at {self._endpoint}")
        idle = loop.create_task(self._needs_none())
        try:
            return await self._greeted(heard, idle)
        finally:
            told.cancel()
            idle.cancel()
            link.socket.disable_monitor()
            link.close()
            monitor.close()
            context.term()

    async def _endpoints(self) -> list[str]:
        """Where to look for the coordinator: under its name, of which ZeroMQ takes the first address alone, and at each
        of its addresses where there are several.
        """
        host, _, port = self._endpoint.removeprefix("tcp://").rpartition(":")
        found = await asyncio.to_thread(addresses_of, host.strip("[]"))
        if len(found) == 1:
            return [self._endpoint]
        return [self._endpoint, *(f"tcp://[{one}]:{port}" if ":" in one else f"tcp://{one}:{port}" for one in found)]

    async def _needs_none(self) -> None:
        while not self._leaving and not self._job_over and self._error is None:
            self._changed.clear()
            await self._changed.wait()

    async def _nobody(self) -> Unreachable:
        host, _, port = self._endpoint.removeprefix("tcp://").rpartition(":")
        found = await asyncio.to_thread(why_unreachable, host.strip("[]"), [int(port)])
        why = f"{found}: " if found is not None else ""
        why += "is mpconv convert --listen running there, and the port open? --wait and --stay wait longer"
        return Unreachable(f"no coordinator at {self._endpoint} for {self._wait:g} seconds: {why}")

    async def _greeted(self, heard: asyncio.Queue[tuple[int, str]], idle: asyncio.Task[None]) -> bool:
        loop = asyncio.get_running_loop()
        until = None if self._wait is None else loop.time() + self._wait
        tries = 0
        while not idle.done():
            hearing = loop.create_task(heard.get())
            left = None if until is None else max(0.0, until - loop.time())
            await asyncio.wait([hearing, idle], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():
                hearing.cancel()
                if not idle.done():
                    raise await self._nobody()
                break
            event, endpoint = hearing.result()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._found_at = endpoint
                return True
            tries += 1
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                why = "copy the coordinator's key file to this host"
                raise Fatal(f"the coordinator at {self._endpoint} does not know the key of this key file: {why}")
            if tries == _TRIES:
                why = f"whoever listens at {self._endpoint} does not have the coordinator's key of this key file"
                raise Fatal(f"{why}: is it the right address, and the key file that its --listen has?")
        return False


def _told(frames: list[bytes]) -> tuple[int, str]:
    """What happened to a connection, and to which endpoint it goes."""
    told = parse_monitor_message(frames)
    return int(told["event"]), told["endpoint"].decode(errors="replace")
