"""Who hears what becomes of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mpconv.model.errors import Deserted

if TYPE_CHECKING:
    from mpconv.core.events import Action, Event
    from mpconv.core.state import CoordinatorState
    from mpconv.model.extent import Extent
    from mpconv.protocol.job import Job


class Listener:
    """Who follows a job lease by lease. It is called on the coordinator's event loop, tens of thousands of times a
    second, and must neither block nor raise. This one does nothing.
    """

    def began(self, job: Job, state: CoordinatorState) -> None:
        """Workers begin with a job: to copy it, or to read back what was copied. `state` is to be looked at only."""

    def hello(self, worker: str, where: str) -> None:
        """The worker of that name, which events and leases carry, and how people call it."""

    def took(self, event: Event, actions: Sequence[Action]) -> None:
        """What came into the state machine, and what it asked for."""

    def wrote(self, worker: str, extent: Extent, zeros: int) -> None:
        """A lease is done, `zeros` bytes of it were zero."""

    def trouble(self, worker: str) -> None:
        """A server does not answer the worker, or answers again."""


class Observer:
    """This one listens to nothing. `listener`: who wants to hear of each lease too; None: nobody."""

    listener: Listener | None = None

    def progress(self, done: int, total: int, zeros: int) -> None:
        """So many bytes are complete, `zeros` of them zero."""

    def workers(self, count: int) -> None:
        """So many workers take part now, of this host and of others. Told when it changes, within a second."""

    def skips(self, known: int, passed: int) -> None:
        """Of what is known so far, `known` bytes need no work, holes that the target has already, say. `passed` of them
        count as complete.
        """

    def retrying(self, count: int, why: str) -> None:
        """So many workers wait for a server that does not answer; `why`: what the first of them said. Told when it
        changes; 0: they all go on.
        """

    def tick(self) -> None:
        """A second has passed, with progress or without."""

    def phase(self, name: str) -> None:
        """What it is at now: "copy", "read", "flush", "verify"."""

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        """These ranges (start, length) of the source could not be read and became zeros."""

    def digest(self, text: str, image: str) -> None:
        """The digest of what was copied into an image, which is named without credentials."""

    def verified(self, checked: int, size: int) -> None:
        """So many bytes of `size` were read back and are the source's."""

    def judged(self, text: str, *, differs: bool) -> None:
        """What a comparison of two images came to, in a line."""

    def dropped(self, number: int, image: str, why: str) -> None:
        """Of several targets this one, counted from 0 and named without credentials, failed; the others go on."""

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        """Workers of other hosts may connect there from now on. `give_up`: for who knows that none will; it has the job
        end with that error unless somebody works.
        """

    def said(self, text: str) -> None:
        """How something is done, told once."""

    def warn(self, text: str) -> None:
        """People should know it, though the job goes on."""


class ForwardingObserver(Observer):
    """Tells `inner` all that it hears. Who wants to hear something of it besides overrides that, and calls super()."""

    def __init__(self, inner: Observer) -> None:
        self._inner = inner
        self.listener = inner.listener

    def progress(self, done: int, total: int, zeros: int) -> None:
        self._inner.progress(done, total, zeros)

    def workers(self, count: int) -> None:
        self._inner.workers(count)

    def skips(self, known: int, passed: int) -> None:
        self._inner.skips(known, passed)

    def retrying(self, count: int, why: str) -> None:
        self._inner.retrying(count, why)

    def tick(self) -> None:
        self._inner.tick()

    def phase(self, name: str) -> None:
        self._inner.phase(name)

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        self._inner.lost(ranges, why)

    def digest(self, text: str, image: str) -> None:
        self._inner.digest(text, image)

    def verified(self, checked: int, size: int) -> None:
        self._inner.verified(checked, size)

    def judged(self, text: str, *, differs: bool) -> None:
        self._inner.judged(text, differs=differs)

    def dropped(self, number: int, image: str, why: str) -> None:
        self._inner.dropped(number, image, why)

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        self._inner.listens(endpoint, give_up)

    def said(self, text: str) -> None:
        self._inner.said(text)

    def warn(self, text: str) -> None:
        self._inner.warn(text)
