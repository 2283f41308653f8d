"""Throughput over time: a bounded number of samples, further apart the older they are. Pure."""

from __future__ import annotations

from mpconv.ui.monitor.facts import Sample

_MOST = 400
_KEPT_NEW = 120
RECENT = 10.0
"""Seconds over which "now" is averaged."""


class Timeline:
    """Samples are sums since the job began, so to leave some out loses nothing but detail."""

    def __init__(self) -> None:
        self.samples: list[Sample] = [Sample(0.0, 0, 0, 0)]

    def take_back(self) -> None:
        """The last sample is too close to the one that comes now to tell a rate; the first one stays."""
        if len(self.samples) > 1:
            self.samples.pop()

    def add(self, at: float, read: int, written: int, zero: int) -> None:
        """The sums `at` seconds after the beginning."""
        self.samples.append(Sample(at, read, written, zero))
        if len(self.samples) > _MOST:
            old, new = self.samples[:-_KEPT_NEW], self.samples[-_KEPT_NEW:]
            self.samples = [*old[::2], *new]
