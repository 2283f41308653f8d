"""The L2 entries of what is written and durable, kept elsewhere until the tables are made at the end. Pure.

They are kept in parts of some ten thousand guest clusters each, whole tables; of a part, the entries of those clusters
that are done, one after the other. So whoever has the parts must know what is done.
"""

from __future__ import annotations

from mpconv.formats.qcow2.layout import Layout
from mpconv.model.errors import ImageError
from mpconv.model.extent import Extent
from mpconv.model.ranges import Ranges

_CLUSTERS = 8192


class KeptEntries:
    """Those of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tables = max(1, _CLUSTERS // layout.per_table)
        self._span = self._tables * layout.per_table << layout.cluster_bits
        self._marked: set[int] = set()

    @property
    def end(self) -> int:
        """The first host byte that was never handed out; 0 where each guest byte has its place for ever."""
        return 0 if self._layout.preallocated or self._layout.external else self._layout.end

    def mark(self, extent: Extent) -> None:
        """The extent is done."""
        first, last = extent.start // self._span, (extent.end - 1) // self._span
        self._marked.update(range(first, last + 1))

    def changed(self, done: Ranges) -> dict[int, bytes]:
        """The parts in which something was marked since the last call; not those that have no tables."""
        marked, self._marked = self._marked, set()
        tables = self._layout.tables
        return {
            number: b"".join(self._layout.entries_of(*clusters) for clusters in self._clusters(number, done))
            for number in marked
            if any(table in tables for table in range(number * self._tables, (number + 1) * self._tables))
        }

    def restore(self, parts: dict[int, bytes], done: Ranges, end: int) -> None:
        """Into a layout that is new. `end`: as it was. ImageError when that cannot be right."""
        self._layout.begin_behind(end)
        width = 8 * self._layout.words
        for number, part in parts.items():
            at = 0
            for first, stop in self._clusters(number, done):
                length = (stop - first) * width
                try:
                    self._layout.restore(first, part[at : at + length])
                except IndexError:
                    raise ImageError("the journal names clusters of the target that were never handed out") from None
                at += length
            if at != len(part):
                raise ImageError("the journal does not say of all that is done where it lies in the target")

    def _clusters(self, number: int, done: Ranges) -> list[tuple[int, int]]:
        """(first, end) of the guest clusters of a part that are done."""
        bits, start = self._layout.cluster_bits, number * self._span
        return [(one >> bits, -(-end >> bits)) for one, end in done.within(start, start + self._span)]
