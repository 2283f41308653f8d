"""Who refers to which host cluster of an image that is written into: before that, and as it becomes. Pure.

What is free was free before: neither did a table refer to it, nor had it a refcount. What is freed meanwhile is used by
nobody, since the tables on disk still name it. Memory is a byte or two for each cluster that is in use, and changes are
kept where there are any, in pieces of some thousand clusters.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator

from mpconv.formats.qcow2.check.counts import Counts, zeros

_PIECE = 4096
_STRIDE = 1 << 16


class Books:
    """`counted`: references of the tables, before; `stored`: the refcounts, before. `clusters`: as many as the file
    has, `per_block`: as many as a refcount block has.
    """

    def __init__(self, counted: Counts, stored: Counts, *, clusters: int, per_block: int) -> None:
        self.per_block = per_block
        self._counted = counted
        self._stored = stored
        self._used, self.known = _used(counted, stored, clusters)
        """What may have been in use before lies below `known`."""
        self._behind = self.known
        """Nothing is in use from here on."""
        self._piece = min(_PIECE, per_block)
        self._changes: dict[int, array[int]] = {}

    def alone(self, cluster: int) -> bool:
        """Whether it was in use before, and one thing referred to it."""
        return self._counted[cluster] == 1 and self._stored[cluster] == 1

    def find(self, start: int, length: int = 1) -> int:
        """The first of so many clusters that are free, from `start` on."""
        if start < self.known:
            found = self._used.find(bytes(length), start, self.known)
            if found >= 0:
                return found
        return max(start, self._behind)

    def take(self, first: int, length: int) -> None:
        """They are not free any more."""
        inside = max(0, min(length, self.known - first))
        self._used[first : first + inside] = b"\1" * inside
        if inside < length:
            self._behind = max(self._behind, first + length)

    def refer(self, cluster: int, by: int) -> None:
        """So many references more."""
        number, index = divmod(cluster, self._piece)
        piece = self._changes.get(number)
        if piece is None:
            piece = self._changes[number] = array("i", bytes(4 * self._piece))
        piece[index] += by

    def references(self, cluster: int) -> int:
        """As many as there are now."""
        number, index = divmod(cluster, self._piece)
        return self._counted[cluster] + (self._changes[number][index] if number in self._changes else 0)

    def blocks(self) -> list[int]:
        """Numbers of the refcount blocks in which something changes, ascending."""
        changed = (number for number, piece in self._changes.items() if any(piece))
        return sorted({number * self._piece // self.per_block for number in changed})

    def changes(self, block: int) -> Iterator[tuple[int, int, int]]:
        """Of a refcount block: an entry's place in it, what it was, and what it becomes. A leak stays one; what was too
        low is right from now on.
        """
        pieces = self.per_block // self._piece
        for number in range(block * pieces, (block + 1) * pieces):
            for index, change in enumerate(self._changes.get(number, ())):
                if change:
                    cluster = number * self._piece + index
                    before = self._stored[cluster]
                    yield cluster % self.per_block, before, max(before, self._counted[cluster]) + change


def _used(counted: Counts, stored: Counts, clusters: int) -> tuple[mmap.mmap, int]:
    """A byte for each cluster, 0 for a free one; and where the last one in use ends, `clusters` at least."""
    known = zeros(max(counted.clusters, stored.clusters, clusters))
    end = clusters
    for first in range(0, len(known), _STRIDE):
        parts = [*counted.parts(first, first + _STRIDE), *stored.parts(first, first + _STRIDE)]
        parts = [part for part in parts if part.count(0) < len(part)]
        if parts:
            together = 0
            for part in parts:
                together |= int.from_bytes(part, "little")
            found = together.to_bytes(_STRIDE, "little").rstrip(b"\0")
            known[first : first + len(found)] = found
            end = max(end, first + len(found))
    return known, end
