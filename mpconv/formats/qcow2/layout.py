"""Where the clusters of a qcow2 image that is being written lie, and what its tables will say. Pure.

Host clusters are handed out upwards, in the order in which they are asked for: a copy in order lies in order. What was
handed out counts only once it is written; a lease that is lost and written again gets other clusters, and those of the
first try belong to nobody: their refcount is 0, which is no leak. Tables and refcounts are made from what was written,
at the end, behind the data.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from mpconv.formats.qcow2 import entries
from mpconv.formats.qcow2.entries import ALL_SUBCLUSTERS, COPIED, SUBCLUSTERS, ZERO
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import SECTOR, align_up

_MOST_REFERENCES = 0xFFFF
"""Of one host cluster by compressed ones, whatever a refcount could hold: counts are kept in 16 bits."""


class Layout:
    """A guest disk of `size` bytes. `options`: how the image is made; `backing_size`: bytes of its backing file, None
    without one. `unit`: bytes at whose multiples two writers' compressed clusters may meet.
    """

    def __init__(
        self,
        size: int,
        options: Qcow2Options,
        *,
        backing_size: int | None = None,
    ) -> None:
        self.size = size
        self.options = options
        self.cluster_size = options.cluster_size
        self.cluster_bits = self.cluster_size.bit_length() - 1
        self.words = 2 if options.extended_l2 else 1
        self.per_table = self.cluster_size // (8 * self.words)
        self.clusters = -(-size // self.cluster_size)
        self.external = options.data_file is not None
        self.preallocated = options.preallocation != "off" or options.data_file_raw
        self.tables: dict[int, array[int]] = {}
        self.references = array("H", [1])
        """Of each host cluster; cluster 0 is the header's."""
        self._backing_size = backing_size
        self._marks_zeros = backing_size is not None
        self.unit = SECTOR
        self._most = min((1 << options.refcount_bits) - 1, _MOST_REFERENCES)
        self._next = 1
        self._packed_at = self._packed_end = 0
        self._packed_count = 0
        if self.preallocated:
            self._preallocate()

    @property
    def end(self) -> int:
        """The first host byte that was never handed out."""
        return self._next << self.cluster_bits

    @property
    def reserved(self) -> int:
        """Bytes that the store has from the beginning."""
        return self.end if self.preallocated else 0

    def take(self, clusters: int) -> int:
        """The host byte of so many clusters that nobody has."""
        at = self.end
        self._next += clusters
        self.references.frombytes(bytes(self.references.itemsize * (self._next - len(self.references))))
        return at

    def take_for_tables(self, clusters: int) -> int:
        """The same, of clusters that one thing refers to each from now on."""
        at = self.take(clusters)
        first = at >> self.cluster_bits
        self.references[first : first + clusters] = array(self.references.typecode, [1]) * clusters
        return at

    def place(self, extent: Extent, needs: Sequence[int]) -> list[int]:
        """Host bytes for what is to be written of an extent, which begins at a cluster.

        `needs`: bytes for each of its clusters: all of it, fewer when it is compressed, 0 for none. One place for each
        that is not 0.
        """
        first = extent.start >> self.cluster_bits
        if self.external:
            return [extent.start + (index << self.cluster_bits) for index, need in enumerate(needs) if need]
        if self.preallocated:
            return [self._preallocated(first + index) for index, need in enumerate(needs) if need]
        self._packed_at = align_up(self._packed_at, self.unit)
        return [
            self._plain(first + index) if need == self.cluster_size else self._pack(need)
            for index, need in enumerate(needs)
            if need
        ]

    def _plain(self, cluster: int) -> int:
        """The host byte for a guest cluster that is not compressed."""
        return self.take(1)

    def _pack(self, length: int) -> int:
        """Behind the compressed cluster before it, also across the end of a host cluster when the next one is free."""
        room = self._packed_end - self._packed_at
        full = self._packed_count >= self._most
        if room <= 0 or full or (length > room and self._packed_end != self.end):
            self._packed_at = self.take(1)
            self._packed_end = self.end
            self._packed_count = 0
        at = self._packed_at
        self._packed_at += length
        self._packed_count += 1
        if self._packed_at > self._packed_end:
            self.take(1)
            self._packed_end = self.end
            self._packed_count = 1
        return at

    def wrote(self, extent: Extent, needs: Sequence[int], places: Sequence[int], subclusters: Sequence[int]) -> None:
        """What `place` was asked for is written. `subclusters`: with extended L2 entries, which of each cluster's."""
        cluster = extent.start >> self.cluster_bits
        at = 0
        for index, need in enumerate(needs):
            bitmap = subclusters[index] if self.words == 2 else 0
            if need == 0:
                self._set_zero(cluster + index)
                continue
            host = places[at]
            at += 1
            if need == self.cluster_size:
                self._set(cluster + index, COPIED | host, bitmap | self._other_zeros(cluster + index, bitmap))
            else:
                self._set(cluster + index, entries.compressed_entry(host, need, self.cluster_bits), 0)

    def passed(self, extent: Extent) -> None:
        """Nothing of this extent is written: it is zeros, or left to the backing file."""
        if extent.kind is Kind.UNALLOCATED or not self._marks_zeros:
            return
        at, end = extent.start >> self.cluster_bits, -(-extent.end // self.cluster_size)
        while at < end:
            stop = min(end, at - at % self.per_table + self.per_table)
            self._fill_zero(at, stop)
            at = stop

    def _fill_zero(self, first: int, end: int) -> None:
        """Clusters of one table; where it is empty and all of them are the same, at once."""
        if not self._covered(first):
            return  # nor is any behind it
        table = self._table(first // self.per_table)
        low, high = (index % self.per_table * self.words for index in (first, end - 1))
        part = table[low : high + self.words]
        alike = self._covered(first) == self._covered(end - 1)
        if not alike or self.words == 2 or part.tobytes().count(0) != 8 * len(part):
            for cluster in range(first, end):
                self._set_zero(cluster)
        elif self._covered(first):
            table[low : high + self.words] = array("Q", [ZERO]) * len(part)

    def _covered(self, cluster: int) -> bool:
        """Whether something else than zeros would be read where the image has nothing."""
        return self._backing_size is not None and cluster << self.cluster_bits < self._backing_size

    def _other_zeros(self, cluster: int, bitmap: int) -> int:
        """The zero bits of the subclusters that are not written."""
        if self.words == 1 or not self._covered(cluster):
            return 0
        return (ALL_SUBCLUSTERS & ~bitmap) << SUBCLUSTERS

    def _set_zero(self, cluster: int) -> None:
        if not self._covered(cluster):
            return
        if self.words == 2:
            self._set(cluster, self._reserved_entry(cluster), ALL_SUBCLUSTERS << SUBCLUSTERS)
        elif not self.preallocated:
            self._set(cluster, ZERO, 0)

    def _reserved_entry(self, cluster: int) -> int:
        """What a cluster without data has: its room, when that is taken up beforehand."""
        number, index = divmod(cluster, self.per_table)
        return self._table(number)[index * self.words] if self.preallocated else 0

    def _set(self, cluster: int, entry: int, bitmap: int) -> None:
        number, index = divmod(cluster, self.per_table)
        table = self._table(number)
        old = table[index * self.words]
        if old != entry:
            if old:
                self._refer(old, -1)
            self._refer(entry, 1)
            table[index * self.words] = entry
        if self.words == 2:
            table[index * 2 + 1] = bitmap

    def entries_of(self, first: int, end: int) -> bytes:
        """The entries of guest clusters `first` up to `end`, as they would lie in tables one after the other."""
        parts = []
        while first < end:
            number, index = divmod(first, self.per_table)
            count = min(end - first, self.per_table - index)
            table = self.tables.get(number)
            if table is None:
                parts.append(bytes(8 * self.words * count))
            else:
                parts.append(entries.packed(table[index * self.words : (index + count) * self.words]))
            first += count
        return b"".join(parts)

    def restore(self, first: int, stored: bytes) -> None:
        """What `entries_of` gave, into a layout in which nothing is written. IndexError when it names host clusters
        behind the end.
        """
        words = entries.table(stored)
        at = 0
        while at < len(words):
            number, index = divmod(first + at // self.words, self.per_table)
            part = words[at : at + (self.per_table - index) * self.words]
            at += len(part)
            if part.tobytes().count(0) == 8 * len(part):
                continue
            index *= self.words
            self._table(number)[index : index + len(part)] = part
            if not self.preallocated:
                for entry in part[:: self.words]:
                    self._refer(entry, 1)

    def begin_behind(self, host: int) -> None:
        """Nothing below that host byte is handed out."""
        self.take(max(0, -(-host // self.cluster_size) - self._next))

    def _table(self, number: int) -> array[int]:
        table = self.tables.get(number)
        if table is None:
            table = self.tables[number] = array("Q", bytes(self.cluster_size))
        return table

    def _refer(self, entry: int, by: int) -> None:
        if self.external:
            return
        if entry & entries.COMPRESSED:
            host, stored = entries.compressed_place(entry, self.cluster_bits)
            last = (host + stored - 1) >> self.cluster_bits
            for index in range(host >> self.cluster_bits, last + 1):
                self._count(index, by)
        elif entry & entries.OFFSET:
            self._count((entry & entries.OFFSET) >> self.cluster_bits, by)

    def _count(self, cluster: int, by: int) -> None:
        self.references[cluster] += by

    def _preallocated(self, cluster: int) -> int:
        return (1 + cluster) << self.cluster_bits

    def _preallocate(self) -> None:
        """Every guest cluster has its host cluster from the beginning."""
        if not self.external:
            self.take(self.clusters)
        step = self.words
        for number in range(-(-self.clusters // self.per_table)):
            first = number * self.per_table
            count = min(self.per_table, self.clusters - first)
            base = first << self.cluster_bits if self.external else self._preallocated(first)
            hosts = range(COPIED | base, (COPIED | base) + (count << self.cluster_bits), self.cluster_size)
            table = self.tables[number] = array("Q", bytes(self.cluster_size))
            table[: count * step : step] = array("Q", hosts)
            if not self.external:
                one = base >> self.cluster_bits
                self.references[one : one + count] = array("H", [1]) * count

    def l1(self, offsets: dict[int, int]) -> array[int]:
        """The L1 table; `offsets`: where each L2 table lies."""
        made = array("Q", bytes(8 * self.l1_size))
        for number, offset in offsets.items():
            made[number] = COPIED | offset
        return made

    @property
    def l1_size(self) -> int:
        """Entries."""
        return -(-self.clusters // self.per_table)
