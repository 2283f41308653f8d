"""`python -m tests.support.crash POINT WHO MARK ARGUMENTS`: mpconv, killed at a named point.

POINT: a key of POINTS. WHO: "it", the process that gets there, or "all" of its session. MARK: a file that does not
exist yet; the first process that gets there makes it, so that nobody dies twice. The points are methods of the real
classes in the real processes: workers are forked from the one that is started here.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """Before, or `after`, the `nth` call of a method in its process; `half`: once half of what it writes is written."""

    where: str
    after: bool = False
    half: bool = False
    nth: int = 1


IN_A_WORKER: dict[str, Point] = {
    "has a lease": Point("mpconv.workers.worker:Worker._lease", after=True, nth=2),
    "has read": Point("mpconv.workers.copier:Copier._read", after=True, nth=2),
    "may write": Point("mpconv.workers.lease_queue:LeaseQueue.may_write", after=True, nth=2),
    "writes": Point("mpconv.transports.file.store:FileTransport.write", half=True, nth=3),
    "has written": Point("mpconv.workers.worker:Worker.done"),
    "has said so": Point("mpconv.workers.worker:Worker.done", after=True),
    "is to flush": Point("mpconv.workers.worker:Worker._flush"),
    "has flushed": Point("mpconv.transports.file.store:FileTransport.flush", after=True),
    "has said that": Point("mpconv.workers.worker:Worker._flush", after=True),
}
"""From a lease to a flush, in the order in which a worker gets there."""

IN_THE_COORDINATOR: dict[str, Point] = {
    "knows what is durable": Point("mpconv.journal.recorder:Recorder.durable"),
    "records it": Point("mpconv.journal.file:Journal.commit", nth=2),
    "has recorded it": Point("mpconv.journal.file:Journal.commit", after=True, nth=2),
    "has everything": Point("mpconv.jobs.copy.target:Target.finish"),
    "has written tables": Point("mpconv.formats.qcow2.writer:Writer._write_refcounts"),
    "has finished": Point("mpconv.jobs.copy.target:Target.finish", after=True),
}
"""From a flush to the end of the job."""

POINTS = IN_A_WORKER | IN_THE_COORDINATOR
_SENT = 0.1
"""Seconds after which what was said has left the process: a thread of ZeroMQ's sends it."""


class Death:
    """Comes at a point, once."""

    def __init__(self, point: Point, everybody: bool, mark: str) -> None:
        self._point = point
        self._everybody = everybody
        self._mark = mark
        self._coordinator = os.getpid()
        self._calls = 0

    def comes(self) -> bool:
        """Whether this call is the one. The coordinator flushes as well, and is no worker."""
        if (self._point in IN_A_WORKER.values()) == (os.getpid() == self._coordinator):
            return False
        self._calls += 1
        if self._calls != self._point.nth:
            return False
        try:
            os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def strike(self) -> None:
        """As the OOM killer does it, or a host that loses its power."""
        if self._everybody:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, with death at its point."""

        @functools.wraps(method)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            if not self.comes():
                return await method(*arguments, **options)
            if self._point.half:
                itself, offset, buffer = arguments
                await method(itself, offset, buffer[: len(buffer) // 2])
            if self._point.after:
                await method(*arguments, **options)
                await asyncio.sleep(_SENT)
            self.strike()

        @functools.wraps(method)
        def called(*arguments: Any, **options: Any) -> Any:
            if not self.comes():
                return method(*arguments, **options)
            if self._point.after:
                method(*arguments, **options)
                time.sleep(_SENT)
            self.strike()

        return awaited if inspect.iscoroutinefunction(method) else called


def main() -> None:
    """Put the death where it belongs, then be the command."""
    point, who, mark, *arguments = sys.argv[1:]
    module, _, path = POINTS[point].where.partition(":")
    owner_name, method_name = path.split(".")
    owner = getattr(importlib.import_module(module), owner_name)
    death = Death(POINTS[point], who == "all", mark)
    setattr(owner, method_name, death.around(getattr(owner, method_name)))
    from mpconv.cli import run  # noqa: PLC0415  (what is forked is what was changed)

    sys.argv = ["mpconv", *arguments]
    run()


if __name__ == "__main__":
    main()
