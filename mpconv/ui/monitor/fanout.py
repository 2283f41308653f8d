"""Jobs side by side that are watched while they run: a record each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpconv import transports
from mpconv.coordination.observer import Observer
from mpconv.jobs.fanout.observer import FanoutObserver
from mpconv.jobs.fanout.spec import Outcome, Result, Spec
from mpconv.model.errors import Deserted, Fatal, Interrupted
from mpconv.ui.monitor.monitor import Monitor, ended
from mpconv.ui.monitor.observer import MonitoringObserver


class MonitoredFanout(FanoutObserver):
    """Tells `inner`, and has `watch` keep a record of each job, under its name."""

    def __init__(self, watch: Monitor, inner: FanoutObserver, specs: Sequence[Spec]) -> None:
        self._watch = watch
        self._inner = inner
        self._specs = {spec.name: spec for spec in specs}
        self._jobs: dict[str, MonitoringObserver] = {}

    def job(self, outcome: Outcome) -> Observer:
        inner = self._inner.job(outcome)
        sources = ", ".join(transports.redacted(place.url) for place in self._specs[outcome.name].sources)
        made = self._watch.job(outcome.name, inner, source=sources, target=outcome.target)
        made.record.waits()
        self._jobs[outcome.name] = made
        if outcome.result is Result.WRITTEN:
            made.record.progress(outcome.done, outcome.size, outcome.zeros)
            made.record.ended(None)
        return made

    def began(self, outcome: Outcome) -> None:
        self._jobs[outcome.name].record.starts()
        self._inner.began(outcome)

    def again(self, outcome: Outcome, why: str, seconds: float) -> None:
        record = self._jobs[outcome.name].record
        record.warned(f"{why}: it is tried again in {seconds:.0f} s")
        record.waits()
        self._inner.again(outcome, why, seconds)

    def ended(self, outcome: Outcome) -> None:
        error: Exception | None = None
        if outcome.result is not Result.WRITTEN:
            error = Interrupted(2) if outcome.result is Result.STOPPED else Fatal(outcome.why or "")
        ended(self._jobs[outcome.name].record, error)
        self._inner.ended(outcome)

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        self._inner.listens(endpoint, give_up)

    def warn(self, text: str) -> None:
        self._inner.warn(text)
