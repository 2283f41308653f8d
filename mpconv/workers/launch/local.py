"""Worker processes on this host, forked by a nursery."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from mpconv import transports
from mpconv.model.errors import WorkerLost
from mpconv.model.place import Place
from mpconv.workers.launch import forkserver
from mpconv.workers.launch.provider import Ended, WorkerProvider

_SHARED = ("mpconv.protocol.link", "mpconv.protocol.codec", "mpconv.formats.opening")
"""What command and workers both need; they bring asyncio, msgspec and ZeroMQ, two thirds of the time. What only one of
them needs is imported after the fork, side by side.
"""


def modules_for(
    sources: Iterable[Place], target: Place | None = None, *, compressing: bool = False, digesting: bool = False
) -> set[str]:
    """What workers need for these places, as far as it is known yet."""
    sources = list(sources)
    places = [*sources, *([target] if target is not None else [])]
    wanted = {transports.module_of(place.url) for place in places}
    if any(place.format == "qcow2" or (place.format is None and "qcow" in place.url) for place in sources):
        wanted.add("mpconv.formats.qcow2.image")
    if target is not None and target.format == "qcow2":
        wanted.add("mpconv.workers.allocating_copier")
        if compressing:
            wanted.add("mpconv.formats.qcow2.codecs")
    if digesting:
        wanted.add("mpconv.workers.hashing")
    return wanted


class LocalWorkers(WorkerProvider):
    """Starts, watches and ends worker processes. To be made before the first thread, event loop, ZeroMQ context and
    storage session, because the process is forked, unless they are `spawned`; and to be closed. Raises WorkerLost when
    none can be started.
    """

    @classmethod
    def preloading(
        cls,
        sources: Iterable[Place],
        target: Place | None = None,
        *,
        compressing: bool = False,
        digesting: bool = False,
        spawned: bool = False,
    ) -> LocalWorkers:
        """Workers that have imported what these places need, as far as it is known yet."""
        wanted = modules_for(sources, target, compressing=compressing, digesting=digesting)
        return cls(sorted(wanted), spawned=spawned)

    def __init__(self, preload: list[str], *, spawned: bool = False) -> None:
        modules = ["mpconv.workers.process", *preload]
        try:
            if spawned:
                self._nursery = forkserver.spawn(modules)
            else:
                for module in _SHARED:
                    importlib.import_module(module)
                gc.freeze()  # a collection would write to what the processes share, and so copy it
                self._nursery = forkserver.fork(modules)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise WorkerLost(f"no worker process can be started: {why}: is memory short, or ulimit -u?") from error
        self._running: dict[int, Ended] = {}
        self._idle: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the nursery; workers that still run, as after an error nobody foresaw, end first."""
        self._nursery.control.close()
        os.close(self._nursery.lifeline)
        if not self._running:
            os.kill(self._nursery.pid, signal.SIGKILL)  # it may still import
        os.waitpid(self._nursery.pid, 0)

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        asyncio.get_running_loop().add_reader(self._nursery.control, self._hear)
        return [self._start(endpoint, ended) for _ in range(count)]

    def _start(self, endpoint: str, ended: Ended) -> int:
        why = "the process that starts them has ended"
        with contextlib.suppress(ConnectionError):
            self._nursery.control.send(endpoint.encode())
            while report := self._nursery.control.recv(forkserver.REPORT.size):
                what, who, code = forkserver.REPORT.unpack(report)
                if what == forkserver.STARTED:
                    self._running[who] = ended
                    return int(who)
                if what == forkserver.NOT_STARTED:
                    why = os.strerror(who)
                    break
                asyncio.get_running_loop().call_soon(self._over, who, code)
        raise WorkerLost(f"a worker process could not be started: {why}: try fewer --workers")

    def _hear(self) -> None:
        try:
            report = self._nursery.control.recv(forkserver.REPORT.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            report = b""
        if report:
            _, pid, code = forkserver.REPORT.unpack(report)
            self._over(pid, code)
            return
        asyncio.get_running_loop().remove_reader(self._nursery.control)
        for pid in self._running:
            _kill(pid)
        for pid in list(self._running):
            self._over(pid, None)

    def _over(self, pid: int, code: int | None) -> None:
        ended = self._running.pop(pid)
        if not self._running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        ended(pid, code)

    def kill(self, pid: int) -> None:
        if pid in self._running:
            _kill(pid)

    def dismiss(self) -> None:
        """Ask all of them to leave, by SIGTERM."""
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    async def stop(self, grace: float) -> None:
        loop = asyncio.get_running_loop()
        if self._running:
            self._idle = loop.create_future()
            await asyncio.wait([self._idle], timeout=grace)
            for pid in self._running:
                _kill(pid)
            if self._running:
                await self._idle
        loop.remove_reader(self._nursery.control)


class WorkerShare(WorkerProvider):
    """Some of a nursery's workers, beside others: those of one job."""

    def __init__(self, local: LocalWorkers) -> None:
        self._local = local
        self._pids: set[int] = set()
        self._idle: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._pids)

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        def over(pid: int, code: int | None) -> None:
            self._pids.discard(pid)
            if not self._pids and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            ended(pid, code)

        started: list[int] = []
        for _ in range(count):
            started += self._local.start(1, endpoint, over)
            self._pids.add(started[-1])
        return started

    def kill(self, pid: int) -> None:
        if pid in self._pids:
            self._local.kill(pid)

    async def stop(self, grace: float) -> None:
        if not self._pids:
            return
        self._idle = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._idle], timeout=grace)
        for pid in self._pids:
            self._local.kill(pid)
        if self._pids:
            await self._idle


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
