"""An observer that keeps a record of what another one hears too."""

from __future__ import annotations

from mpconv.coordination.observer import ForwardingObserver, Observer
from mpconv.ui.monitor.record import Record


class MonitoringObserver(ForwardingObserver):
    """Tells `record` and `inner`."""

    def __init__(self, record: Record, inner: Observer) -> None:
        super().__init__(inner)
        self.record = record
        self.listener = record

    def progress(self, done: int, total: int, zeros: int) -> None:
        self.record.progress(done, total, zeros)
        super().progress(done, total, zeros)

    def phase(self, name: str) -> None:
        self.record.phase(name)
        super().phase(name)

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        self.record.lost(ranges, why)
        super().lost(ranges, why)

    def digest(self, text: str, image: str) -> None:
        self.record.digest(text)
        super().digest(text, image)

    def verified(self, checked: int, size: int) -> None:
        self.record.verified(checked, size)
        super().verified(checked, size)

    def judged(self, text: str, *, differs: bool) -> None:
        self.record.judged(text, differs=differs)
        super().judged(text, differs=differs)

    def dropped(self, number: int, image: str, why: str) -> None:
        self.record.dropped(image, why)
        super().dropped(number, image, why)

    def warn(self, text: str) -> None:
        self.record.warned(text)
        super().warn(text)
