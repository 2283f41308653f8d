"""Jobs that are watched while they run: their records, a clock that ticks for them, and who serves what they tell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from mpconv.coordination.observer import Observer
from mpconv.model.errors import Interrupted, MpconvError
from mpconv.ui.monitor.address import Address
from mpconv.ui.monitor.facts import COPY, Job
from mpconv.ui.monitor.observer import MonitoringObserver
from mpconv.ui.monitor.record import Record

TICK = 0.5
"""Seconds between two looks at what has happened."""
Tell = Callable[[str], None]


class Monitor:
    """Used as an asynchronous context around the jobs. `metrics`, `web`: where to serve. `tell`: hears at which URLs.

    Jobs are known by their names, each of which is another.
    """

    def __init__(self, *, metrics: Address | None = None, web: Address | None = None, tell: Tell = print) -> None:
        self._metrics = metrics
        self._web = web
        self._tell = tell
        self._records: dict[str, Record] = {}
        self._around = contextlib.AsyncExitStack()

    def job(
        self, name: str, inner: Observer, *, source: str, target: str, targets: int = 1, kind: str = COPY
    ) -> MonitoringObserver:
        """An observer of a new job, which passes on to `inner` what it hears."""
        return MonitoringObserver(self.record(name, source=source, target=target, targets=targets, kind=kind), inner)

    def record(self, name: str, *, source: str, target: str = "", targets: int = 1, kind: str = COPY) -> Record:
        """Of a new job, whose observer is still to come. `kind`: as a Job's."""
        clocks = {"now": time.monotonic, "wall": time.time}
        record = Record(name, source=source, target=target, targets=targets, kind=kind, **clocks)
        self._records[record.name] = record
        return record

    def facts(self) -> Sequence[Job]:
        """All jobs as they stand."""
        return [record.facts() for record in self._records.values()]

    async def __aenter__(self) -> Self:
        """Fatal when an address cannot be had."""
        from mpconv.ui.monitor.server import serving  # noqa: PLC0415  (aiohttp: only here it is known to be there)

        async with contextlib.AsyncExitStack() as around:
            for told in await around.enter_async_context(serving(self.facts, self._metrics, self._web)):
                self._tell(told)
            ticking = asyncio.get_running_loop().create_task(self._tick())
            around.callback(ticking.cancel)
            self._around = around.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Jobs of which nobody has said how they ended have ended with `error`."""
        for record in self._records.values():
            ended(record, error)
        await self._around.aclose()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for record in self._records.values():
                record.tick()


def ended(record: Record, error: BaseException | None) -> None:
    """The job is over; None: it has done what it should."""
    if error is None:
        record.ended(None)
        return
    stopped = isinstance(error, Interrupted) or not isinstance(error, MpconvError)
    record.ended(str(error) or type(error).__name__, stopped=stopped)
