"""The write order: what is written, up to where it is written without a gap, and who may write next."""

from __future__ import annotations

import enum
import heapq

from mpconv.model.extent import Extent
from mpconv.model.ranges import Ranges

_ANYWHERE = 1 << 63


class Order(enum.Enum):
    """Who may write when.

    FREE: everybody at once, the token comes with the lease. ASKED: whoever asks, since the token tells where to write.
    ASCENDING: one lease at a time, the lowest. FOLLOWING: tokens are given ascending, and a lease may follow the one
    below it before that is written: its one worker keeps the order in which it sends.
    """

    FREE = "free"
    ASKED = "asked"
    ASCENDING = "ascending"
    FOLLOWING = "following"


class WriteSequence:
    """`watermark`: every byte below it was written at least once. It never moves back.

    Ascending, one lease at a time holds the commit token: the lowest of those that are ready, once it starts at the
    watermark (or below, where bytes are written again). Following, it starts where a token was given or bytes are
    written.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.watermark = 0
        self.committing: int | None = None
        self._written = Ranges()
        self._given = Ranges()
        self._ready: dict[int, Extent] = {}
        self._queue: list[tuple[int, int]] = []

    def ready(self, epoch: int, extent: Extent) -> None:
        """The lease waits for its token. To say so twice changes nothing."""
        if self.order is not Order.FREE and epoch not in self._ready and epoch != self.committing:
            self._ready[epoch] = extent
            heapq.heappush(self._queue, (extent.start, epoch))

    def next(self) -> int | None:
        """The epoch that gets the token now, if there is one; ascending, the token is its until it is released."""
        if self.committing is not None:
            return None
        while self._queue and self._queue[0][1] not in self._ready:
            heapq.heappop(self._queue)
        if not self._queue or self._queue[0][0] > self.reaches:
            return None
        _, epoch = heapq.heappop(self._queue)
        extent = self._ready.pop(epoch)
        if self.order is Order.ASCENDING:
            self.committing = epoch
        elif self.order is Order.FOLLOWING:
            self._given.add(extent.start, extent.end)
        return epoch

    @property
    def reaches(self) -> int:
        """Up to which byte a lease may start that gets the token."""
        if self.order is Order.ASKED:
            return _ANYWHERE
        if self.order is Order.ASCENDING or not self._given:
            return self.watermark
        start, end = self._given.first
        return end if start == 0 else 0

    def release(self, epoch: int) -> None:
        """The lease has ended, well or badly: it holds no token and waits for none."""
        self._ready.pop(epoch, None)
        if self.committing == epoch:
            self.committing = None

    def written(self, extent: Extent) -> None:
        """These bytes are on the target (or need not be)."""
        self._written.add(extent.start, extent.end)
        if self.order is Order.FOLLOWING:
            self._given.add(extent.start, extent.end)
        start, end = self._written.first
        if start == 0:
            self.watermark = end

    def was_written(self, start: int, end: int) -> bool:
        """Whether every byte from `start` up to `end` was written at least once."""
        return start == end or self._written.covers(start, end)
