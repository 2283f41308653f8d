"""Flushes: what each worker wrote and has not made durable, and who was asked to make it so.

A flush covers what its worker had reported done when it was asked, and nothing that came later. A worker has one
flush under way at most, so that its answer cannot be taken for the answer to another one. When a worker dies,
everything it wrote since its last finished flush is lost and must be written again (PROTOCOL.md, "Who dies when").
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec import Struct, field

from mpconv.core.digests import Log, Packed
from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import Ranges


class Batch(Struct):
    """Bytes that one worker wrote, joined where they meet; `zeros` of them were zero. `digests`: the sums of them."""

    bytes: int = 0
    zeros: int = 0
    digests: Log = field(default_factory=Log)
    _ranges: dict[Kind, Ranges] = field(default_factory=dict)

    def add(self, extent: Extent, zeros: int, digests: Packed) -> None:
        """The extent is written."""
        self.bytes += extent.length
        self.zeros += zeros
        self.digests.note(extent.start, digests)
        ranges = self._ranges.get(extent.kind)
        if ranges is None:
            ranges = self._ranges[extent.kind] = Ranges()
        ranges.add(extent.start, extent.end)

    def extents(self) -> Iterator[Extent]:
        """What was written, by kind, ascending."""
        for kind, ranges in self._ranges.items():
            for start, end in ranges:
                yield Extent(start, end - start, kind)


class _Flush(Struct):
    covers: Batch
    deadline: float


class FlushBook:
    """All that is written and not durable. An answer is due in `duration` seconds unless renewed by a sign of life."""

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self._unasked: dict[str, Batch] = {}
        self._flushing: dict[str, _Flush] = {}

    def wrote(self, worker: str, extent: Extent, zeros: int, digests: Packed = b"") -> None:
        """The worker reported a lease done."""
        batch = self._unasked.get(worker)
        if batch is None:
            batch = self._unasked[worker] = Batch()
        batch.add(extent, zeros, digests)

    def ask(self, now: float, only: str | None = None) -> list[str]:
        """Workers to ask for a flush now: those that wrote and have no flush under way; or `only` that one."""
        some = self._unasked if only is None else self._unasked.keys() & {only}
        asked = sorted(worker for worker in some if worker not in self._flushing)
        for worker in asked:
            self._flushing[worker] = _Flush(self._unasked.pop(worker), now + self.duration)
        return asked

    def flushed(self, worker: str) -> Batch | None:
        """The worker's flush is done: what it covers, which is durable now. None, and no change, when none was asked
        for.
        """
        flush = self._flushing.pop(worker, None)
        return flush.covers if flush is not None else None

    def lose(self, worker: str) -> list[Batch]:
        """The worker is dead or begins anew: what it wrote and did not make durable."""
        flush = self._flushing.pop(worker, None)
        unasked = self._unasked.pop(worker, None)
        return [batch for batch in (flush.covers if flush else None, unasked) if batch is not None]

    def owes(self, worker: str) -> bool:
        """Whether something that it wrote is not durable."""
        return worker in self._unasked or worker in self._flushing

    def renew(self, worker: str, now: float) -> None:
        """A sign of life: the worker's flush may take another `duration`."""
        if worker in self._flushing:
            self._flushing[worker].deadline = now + self.duration

    def overdue(self, now: float) -> list[str]:
        """Workers whose answer is late. Each is told of once, unless it gives a sign of life again."""
        late = [worker for worker, flush in self._flushing.items() if flush.deadline < now]
        for worker in late:
            self._flushing[worker].deadline = math.inf
        return late

    @property
    def all_durable(self) -> bool:
        """Nothing is written that is not durable."""
        return not self._unasked and not self._flushing

    def batches(self) -> list[Batch]:
        """All of it, for invariants."""
        return [*self._unasked.values(), *(flush.covers for flush in self._flushing.values())]
