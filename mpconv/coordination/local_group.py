"""The coordinator's part that deals with worker processes of this host: started, watched, killed, replaced."""

from __future__ import annotations

import asyncio

from mpconv.coordination.observer import Observer
from mpconv.coordination.process_roster import SILENT_SECONDS, ProcessRoster
from mpconv.core import events
from mpconv.core.state import CoordinatorState
from mpconv.model.errors import MpconvError, WorkerLost, internal
from mpconv.workers.launch.provider import WorkerProvider


class LocalGroup:
    """Those of one job. The coordinator gives it the rest."""

    _state: CoordinatorState
    _crew: ProcessRoster
    _workers: WorkerProvider
    _observer: Observer
    _loop: asyncio.AbstractEventLoop
    _endpoint: str
    _crowded = False
    """A target had no room for as many sessions as there were workers."""

    @property
    def _over(self) -> bool:
        raise NotImplementedError

    def _handle(self, event: events.Event) -> None:
        raise NotImplementedError

    def _lose(self, event: events.WorkerDead | events.Restarted) -> None:
        raise NotImplementedError

    def _fail(self, error: MpconvError) -> None:
        raise NotImplementedError

    @property
    def hiring(self) -> bool:
        """Whether there will be leases for more workers, as far as is known."""
        return not self._over and not self._state.stopping and not self._crowded

    def add_workers(self, count: int) -> None:
        """So many more processes of this host; those that cannot be started the job goes on without."""
        if not self.hiring:
            return
        self._crew.count += count
        self._handle(events.WorkersExpected(count))
        try:
            self._start(count)
        except WorkerLost as error:
            self._observer.warn(f"{error}: the job goes on with fewer")

    def _start(self, count: int) -> None:
        for pid in self._workers.start(count, self._endpoint, self._ended):
            self._crew.started(pid, self._loop.time())

    def _ended(self, pid: int, code: int | None) -> None:
        if self._over or self._crew.excused(pid):
            return
        try:
            self._replace(pid, code)
        except MpconvError as error:
            self._fail(error)
        except Exception as error:
            self._fail(internal(error, "the coordinator"))

    def _replace(self, pid: int, code: int | None) -> None:
        """A worker is reaped: what it held and what it did not flush is done again, and another takes its place."""
        if code is None:
            raise WorkerLost(
                "the process that starts the workers ended before their work was done: see dmesg, was memory short?"
            )
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not self._crew.replacements:
            told = f"a worker process (pid {pid}) ended before its work was done ({why}), as others did before it"
            raise WorkerLost(f"{told}: see dmesg, was memory short?")
        self._observer.warn(f"a worker process (pid {pid}) ended ({why}): its work is done again by others")
        name = self._crew.ended(pid)
        if name is not None:
            self._lose(events.WorkerDead(name))
        while not self._over:
            self._crew.replacements -= 1
            try:
                self._start(1)
                return
            except WorkerLost:
                if not self._crew.replacements:
                    raise

    def _kill(self, pid: int) -> None:
        """It may still write, until it is reaped; then its work is done again."""
        silent = f"a worker process (pid {pid}) was silent for {SILENT_SECONDS:.0f} seconds"
        self._observer.warn(f"{silent}: it is killed, and others do its work again")
        self._workers.kill(pid)
