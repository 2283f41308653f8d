"""How fast the target may be written, over all workers (`-r`)."""

from __future__ import annotations


class Rate:
    """`per_second` bytes, on average; seconds of any one clock. What is to be written is paid for before it may begin,
    so the last byte is written when all of it is paid. `per_second` may change. `refunds`: what was not written
    after all costs nothing; otherwise to read it costs as much.
    """

    def __init__(self, per_second: int, *, refunds: bool = True) -> None:
        self.per_second = per_second
        self.refunds = refunds
        self._paid_at: float | None = None

    def ready_at(self, length: int, now: float) -> float:
        """When `length` bytes more may be written; in the past: at once."""
        if self._paid_at is None:
            self._paid_at = now
        return self._paid_at + length / self.per_second

    def pay(self, length: int, now: float) -> None:
        """They are written now. Time in which nothing was asked for is not saved up."""
        self._paid_at = max(self.ready_at(length, now), now)

    def give_back(self, length: int) -> None:
        """So many of the bytes were not written after all."""
        if self._paid_at is not None and self.refunds:
            self._paid_at -= length / self.per_second
