"""Extent: a byte range of the guest disk and what lies in it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

from msgspec import Struct


class Kind(enum.IntEnum):
    """What an extent holds; the values travel in messages."""

    DATA = 0
    ZERO = 1
    UNALLOCATED = 2


class Extent(Struct, frozen=True):
    """`length` bytes from `start`, never empty."""

    start: int
    length: int
    kind: Kind = Kind.DATA

    def __post_init__(self) -> None:
        if self.start < 0 or self.length <= 0:
            raise ValueError(f"not an extent: {self.length} bytes at {self.start}")

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.start + self.length

    def split(self, at: int) -> tuple[Extent, Extent]:
        """Two extents that meet at byte `at`, which lies inside."""
        return Extent(self.start, at - self.start, self.kind), Extent(at, self.end - at, self.kind)

    def overlaps(self, other: Extent) -> bool:
        """Whether a byte lies in both."""
        return self.start < other.end and other.start < self.end


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Adjacent extents of one kind become one; the order is kept."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.end == extent.start and last.kind == extent.kind:
            last = Extent(last.start, last.length + extent.length, last.kind)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
