"""Worker processes on this host, forked by a server process that holds no sockets and no storage sessions.

The server imports what the workers need once; a worker is then a fork of it, some milliseconds later. Its own
parent's end (even by SIGKILL) closes a pipe that every worker watches.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from multiprocessing import forkserver
from typing import Any

from mpconv import transports
from mpconv.errors import WorkerLost
from mpconv.job import Place

Ended = Callable[[int, int | None], None]
"""Called with a worker's pid and exit code, -N when signal N ended it; None: the server that forks them is gone, so
that nobody knows whether the worker still runs."""

_NOBODY_KNOWS = 255
"""multiprocessing's exit code for a process whose end the fork server did not live to tell."""


class LocalWorkers:
    """Starts, watches and ends worker processes."""

    @classmethod
    def preloading(
        cls, sources: Iterable[Place], target: Place | None = None, *, compressing: bool = False
    ) -> LocalWorkers:
        """Workers that have imported what these places need, as far as it is known yet."""
        places = [*sources, *([target] if target is not None else [])]
        wanted = {transports.module_of(place.url) for place in places}
        if any(place.format == "qcow2" or (place.format is None and "qcow" in place.url) for place in sources):
            wanted.add("mpconv.formats.qcow2.image")
        if target is not None and target.format == "qcow2":
            wanted.add("mpconv.workers.cluster_copier")
            if compressing:
                wanted.add("mpconv.formats.qcow2.codecs")
        return cls(sorted(wanted))

    def __init__(self, preload: list[str]) -> None:
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mpconv.workers.process", *preload])
        self._processes: list[Any] = []
        self._gone: asyncio.Future[None] | None = None
        forkserver.ensure_running()

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        """Start `count` workers, beside those that run; their pids. `ended` is called when one of them is reaped.
        Raises WorkerLost when one cannot be started, or dies before it is told what to do.
        """
        from mpconv.workers import process  # noqa: PLC0415  (the server is to start before all that is imported here)

        started: list[Any] = []
        main = sys.modules["__main__"]
        file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
        try:
            main.__dict__.pop("__file__", None)
            main.__spec__ = None
            for _ in range(count):
                worker = self._context.Process(target=process.run, args=(endpoint,), daemon=True)
                try:
                    worker.start()
                except (OSError, EOFError) as error:
                    raise WorkerLost(f"a worker process could not be started: {error}") from error
                started.append(worker)
                self._watch(worker, ended)
        finally:
            if file is not None:
                main.__file__ = file
            main.__spec__ = spec
        return [worker.pid for worker in started]

    def _watch(self, worker: Any, ended: Ended) -> None:
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(worker.sentinel)
            worker.join()
            self._processes.remove(worker)
            if not self._processes and self._gone is not None and not self._gone.done():
                self._gone.set_result(None)
            ended(worker.pid, None if worker.exitcode == _NOBODY_KNOWS else worker.exitcode)

        self._processes.append(worker)
        loop.add_reader(worker.sentinel, gone)

    async def stop(self, grace: float) -> None:
        """Wait `grace` seconds for the workers to end, then kill them. None is left afterwards."""
        loop = asyncio.get_running_loop()
        if self._processes:
            self._gone = loop.create_future()
            await asyncio.wait([self._gone], timeout=grace)
        for worker in self._processes:
            loop.remove_reader(worker.sentinel)
            if worker.is_alive():
                worker.kill()
            worker.join()
        self._processes.clear()
