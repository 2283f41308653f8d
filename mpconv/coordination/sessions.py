"""The coordinator's part that deals with targets that allow few sessions: fewer workers, then none of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mpconv import transports
from mpconv.coordination.observer import Observer
from mpconv.coordination.process_roster import ProcessRoster
from mpconv.coordination.remote_roster import RemoteRoster
from mpconv.core import events
from mpconv.core.state import CoordinatorState
from mpconv.model.errors import Fatal, MpconvError, internal
from mpconv.protocol import messages
from mpconv.protocol.job import Job
from mpconv.transports.base import Transport

_PAUSES = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds before the last worker is told to try again: a target takes a moment to forget a session that has ended."""
_LONGER = (*_PAUSES, 4.0, 4.0, 4.0, 4.0)
"""The same where the coordinator cannot do without a session, and a target that answers on it lets nobody else in: it
is not away, so that it is not waited for as long as one that is.
"""


class SessionLimits:
    """Of one job. The coordinator gives it the rest.

    `holds`: what the coordinator has open and can do without as long as it copies; None: it needs all of it.
    `let_go`: whether that was given back.
    """

    _job: Job
    _state: CoordinatorState
    _crew: ProcessRoster
    _guests: RemoteRoster
    _observer: Observer
    _loop: asyncio.AbstractEventLoop
    _crowded: bool

    def __init__(self, holds: Sequence[Transport] | None) -> None:
        self._holds = holds
        self.let_go = False
        self._refusals = 0
        self._letting_go: set[asyncio.Task[None]] = set()

    def _fail(self, error: MpconvError) -> None:
        raise NotImplementedError

    def _handle(self, event: events.Event) -> None:
        raise NotImplementedError

    def _lose(self, event: events.WorkerDead | events.Restarted) -> None:
        raise NotImplementedError

    def _send(self, name: str, message: messages.FromCoordinator) -> None:
        raise NotImplementedError

    def _open_again(self, name: str, *, insist: bool = False) -> None:
        """The job, to the last worker, which has all buffers."""
        raise NotImplementedError

    def _no_room(self, name: str, image: str, why: str, *, certain: bool) -> None:
        """A worker was not let in."""
        if self._crew.count + len(self._guests) > 1:
            if not self._crowded:
                self._observer.said(f"fewer workers: '{image}' has no room for more sessions")
            self._crowded = True
            self._turn_away(name, image, why)
            return
        self._refusals += 1
        alone = self._holds is not None
        if self._refusals > len(_PAUSES if alone else _LONGER) or (certain and not alone):
            needed = self._needed(image)
            sessions = f"{needed} sessions" if needed > 1 else "a session"
            needs = f"this needs {sessions} at a time" + ("" if certain else ", if that is the reason")
            if certain or not alone:
                self._fail(Fatal(f"Could not open '{image}': {why}: {needs}", image=image))
                return
            self._observer.warn(f"'{image}': {why}: {needs}")
            self._open_again(name, insist=True)
            return
        task = self._loop.create_task(self._make_room(name, self._holds or ()))
        self._letting_go.add(task)
        task.add_done_callback(self._letting_go.discard)

    def _needed(self, image: str) -> int:
        """Sessions to the target of that image: a worker's, and the coordinator's where it cannot do without."""
        urls = [transports.redacted(place.url) for place in (*self._job.sources, *self._job.targets)]
        same = [url for url in urls if url.rpartition("/")[0] == image.rpartition("/")[0]]
        return max(1, len(same)) * (2 if self._holds is None else 1)

    def _turn_away(self, name: str, image: str, why: str) -> None:
        guest = self._guests.get(name)
        if guest is not None:
            self._send(name, messages.Refused(f"this host cannot take part: '{image}': {why}"))
            self._guests.ended(name)
        else:
            self._send(name, messages.Bye())
            self._crew.turn_away(name)
        self._lose(events.WorkerDead(name))
        self._handle(events.WorkersExpected(-1))

    async def _make_room(self, name: str, holds: Sequence[Transport]) -> None:
        try:
            self.let_go = True
            for store in holds:
                await store.release()
            await asyncio.sleep(_LONGER[self._refusals - 1])
        except MpconvError as error:
            self._fail(error)
        except Exception as error:
            self._fail(internal(error, "the coordinator"))
        else:
            self._open_again(name)

    async def _settle_room(self) -> None:
        """Nothing of it goes on."""
        for task in self._letting_go:
            task.cancel()
        await asyncio.gather(*self._letting_go, return_exceptions=True)
