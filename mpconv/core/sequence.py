"""The write order: what is written, up to where it is written without a gap, and who may write next."""

from __future__ import annotations

import heapq

from mpconv.extent import Extent, Ranges


class WriteSequence:
    """`watermark`: every byte below it was written at least once. It never moves back.

    In order, one lease at a time holds the commit token: the lowest of those that are ready, once it starts at the
    watermark (or below, where bytes are written again). Out of order nobody waits here.
    """

    def __init__(self, *, in_order: bool) -> None:
        self.in_order = in_order
        self.watermark = 0
        self.committing: int | None = None
        self._written = Ranges()
        self._ready: dict[int, Extent] = {}
        self._queue: list[tuple[int, int]] = []

    def ready(self, epoch: int, extent: Extent) -> None:
        """The lease waits for its token. To say so twice changes nothing."""
        if self.in_order and epoch not in self._ready and epoch != self.committing:
            self._ready[epoch] = extent
            heapq.heappush(self._queue, (extent.start, epoch))

    def next(self) -> int | None:
        """The epoch that gets the token now, if there is one; the token is its until it is released."""
        if self.committing is not None:
            return None
        while self._queue and self._queue[0][1] not in self._ready:
            heapq.heappop(self._queue)
        if not self._queue or self._queue[0][0] > self.watermark:
            return None
        _, self.committing = heapq.heappop(self._queue)
        del self._ready[self.committing]
        return self.committing

    def release(self, epoch: int) -> None:
        """The lease has ended, well or badly: it holds no token and waits for none."""
        self._ready.pop(epoch, None)
        if self.committing == epoch:
            self.committing = None

    def written(self, extent: Extent) -> None:
        """These bytes are on the target (or need not be)."""
        self._written.add(extent.start, extent.end)
        start, end = self._written.first
        if start == 0:
            self.watermark = end

    def was_written(self, start: int, end: int) -> bool:
        """Whether every byte from `start` up to `end` was written at least once."""
        return start == end or self._written.covers(start, end)
