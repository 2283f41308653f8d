"""The write order: what is written, up to where it is written without a gap, and who may write next."""

from __future__ import annotations

import bisect

from mpconv.extent import Extent


class WriteSequence:
    """`watermark`: every byte below it was written at least once. It never moves back."""

    def __init__(self, *, in_order: bool) -> None:
        self.in_order = in_order
        self.watermark = 0
        self._beyond: list[tuple[int, int]] = []
        self._committing: int | None = None

    def may_commit(self, epoch: int, extent: Extent) -> bool:
        """In order: only the extent at the watermark (or below: written again), and only one at a time."""
        if not self.in_order:
            return True
        return self._committing in (None, epoch) and extent.start <= self.watermark

    def commit(self, epoch: int) -> None:
        """The token is granted."""
        if self.in_order:
            self._committing = epoch

    def release(self, epoch: int) -> None:
        """The token's lease has ended, well or badly."""
        if self._committing == epoch:
            self._committing = None

    def written(self, extent: Extent) -> None:
        """These bytes are on the target (or need not be)."""
        bisect.insort(self._beyond, (extent.start, extent.end))
        while self._beyond and self._beyond[0][0] <= self.watermark:
            self.watermark = max(self.watermark, self._beyond.pop(0)[1])
