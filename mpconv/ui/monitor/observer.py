"""An observer that keeps a record of what another one hears too."""

from __future__ import annotations

from collections.abc import Callable

from mpconv.coordination.observer import Observer
from mpconv.jobs.collector import Collector
from mpconv.model.errors import Deserted
from mpconv.ui.monitor.record import Record


class MonitoringObserver(Collector):
    """Tells `record` and `inner`."""

    def __init__(self, record: Record, inner: Observer) -> None:
        super().__init__()
        self.record = record
        self.listener = record
        self._inner = inner

    def progress(self, done: int, total: int, zeros: int) -> None:
        self.record.progress(done, total, zeros)
        super().progress(done, total, zeros)
        self._inner.progress(done, total, zeros)

    def phase(self, name: str) -> None:
        self.record.phase(name)
        super().phase(name)
        self._inner.phase(name)

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        self.record.lost(ranges, why)
        super().lost(ranges, why)
        self._inner.lost(ranges, why)

    def digest(self, text: str, image: str) -> None:
        self.record.digest(text)
        super().digest(text, image)
        self._inner.digest(text, image)

    def verified(self, checked: int, size: int) -> None:
        self.record.verified(checked, size)
        super().verified(checked, size)
        self._inner.verified(checked, size)

    def judged(self, text: str, *, differs: bool) -> None:
        self.record.judged(text, differs=differs)
        self._inner.judged(text, differs=differs)

    def dropped(self, number: int, image: str, why: str) -> None:
        self.record.dropped(image, why)
        self._inner.dropped(number, image, why)

    def workers(self, count: int) -> None:
        self._inner.workers(count)

    def skips(self, known: int, passed: int) -> None:
        super().skips(known, passed)
        self._inner.skips(known, passed)

    def retrying(self, count: int, why: str) -> None:
        self._inner.retrying(count, why)

    def tick(self) -> None:
        self._inner.tick()

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        self._inner.listens(endpoint, give_up)

    def said(self, text: str) -> None:
        self._inner.said(text)

    def warn(self, text: str) -> None:
        self.record.warned(text)
        self._inner.warn(text)
