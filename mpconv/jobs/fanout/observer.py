"""Who hears what becomes of many jobs; and what is kept of each."""

from __future__ import annotations

from collections.abc import Callable

from mpconv.coordination.observer import ForwardingObserver, Observer
from mpconv.jobs.fanout.spec import Outcome
from mpconv.model.errors import Deserted
from mpconv.model.ranges import Ranges


class FanoutObserver:
    """This one listens to nothing."""

    def job(self, outcome: Outcome) -> Observer:
        """Who hears of that job alone, in all of its attempts."""
        return Observer()

    def began(self, outcome: Outcome) -> None:
        """A job runs; `attempts` says for the how many-th time."""

    def again(self, outcome: Outcome, why: str, seconds: float) -> None:
        """It failed, and is begun again so much later."""

    def ended(self, outcome: Outcome) -> None:
        """It is over."""

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        """As an Observer's, for all jobs."""

    def warn(self, text: str) -> None:
        """People should know it, and it is no job's."""


class OutcomeObserver(ForwardingObserver):
    """Keeps what a job tells in its outcome, and tells another observer. `begun`: its images are open, and its target
    may have been written to.
    """

    def __init__(self, outcome: Outcome, inner: Observer) -> None:
        super().__init__(inner)
        self._outcome = outcome
        self._copying = True
        self.begun = False
        self._lost = Ranges()

    def progress(self, done: int, total: int, zeros: int) -> None:
        self.begun = True
        if self._copying:
            self._outcome.done, self._outcome.size, self._outcome.zeros = done, total, zeros
        super().progress(done, total, zeros)

    def phase(self, name: str) -> None:
        self._copying = name in ("copy", "flush")
        super().phase(name)

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        for start, length in ranges:
            self._lost.add(start, start + length)
        self._outcome.lost = sum(end - start for start, end in self._lost)
        super().lost(ranges, why)

    def digest(self, text: str, image: str) -> None:
        self._outcome.digest = text
        super().digest(text, image)

    def verified(self, checked: int, size: int) -> None:
        self._outcome.verified = checked
        super().verified(checked, size)

    def workers(self, count: int) -> None:
        """Of the pool, which has them: it tells that itself."""

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        """As with `workers`."""
