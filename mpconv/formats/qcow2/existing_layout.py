"""Where the clusters of a qcow2 image lie that existed before it is written into (`-n`). Pure.

A cluster that the image says it has alone (COPIED), and has, is written where it is; another one, of a snapshot,
compressed or not there, gets a host cluster that was free before.
"""

from __future__ import annotations

from array import array

from mpconv.formats.qcow2 import entries
from mpconv.formats.qcow2.check.owners import Books
from mpconv.formats.qcow2.entries import ALL_SUBCLUSTERS, COPIED, SUBCLUSTERS, ZERO
from mpconv.formats.qcow2.header import LAZY_REFCOUNTS, Header
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options


def options_of(header: Header) -> Qcow2Options:
    """How the image would be made; what is taken up beforehand is in its tables."""
    return Qcow2Options(
        version=header.version,
        cluster_size=header.cluster_size,
        lazy_refcounts=bool(header.compatible & LAZY_REFCOUNTS),
        refcount_bits=header.refcount_bits,
        compression_type=header.compression,
        extended_l2=header.extended_l2,
        backing_file=header.backing_file,
        backing_fmt=header.backing_format,
        data_file=(header.data_file or "") if header.external_data else None,
    )


class ExistingLayout(Layout):
    """`size`: guest bytes that are written, at most the image's. `l1`, `tables`: as they are; `books`: of its host
    clusters, of which the file has `clusters`. `reads_as_zeros`: the user's word for it, so that zeros are left out.
    """

    def __init__(
        self,
        size: int,
        header: Header,
        *,
        l1: array[int],
        tables: dict[int, array[int]],
        books: Books,
        clusters: int,
        reads_as_zeros: bool,
    ) -> None:
        super().__init__(size, options_of(header))
        self.existing_l1 = l1
        self.tables = tables
        self.books = books
        self.changed: set[int] = set()
        """Numbers of the L2 tables that are not any more what is on disk."""
        self._marks_zeros = not reads_as_zeros
        self._backed = header.backing_file is not None
        self._at = 0
        """No cluster below is free."""
        self._next = books.find(clusters)
        self.kept: int | None = None
        """The guest cluster that keeps old bytes behind the new ones: it is never written in place."""

    def take_one(self) -> int:
        """The host byte of a cluster that was free when the copy began."""
        cluster = self.books.find(self._at)
        if cluster >= self.books.known:
            return self.take(1)
        self._at = cluster + 1
        self._taken(cluster, 1)
        return cluster << self.cluster_bits

    def take(self, clusters: int) -> int:
        """Behind the file as it was."""
        cluster = self.books.find(self._next, clusters)
        self._taken(cluster, clusters)
        return cluster << self.cluster_bits

    def _taken(self, cluster: int, clusters: int) -> None:
        """`end` is what is taken next."""
        self.books.take(cluster, clusters)
        self._next = self.books.find(self._next)

    def take_for_tables(self, clusters: int) -> int:
        at = self.take(clusters)
        for cluster in range(at >> self.cluster_bits, (at >> self.cluster_bits) + clusters):
            self._count(cluster, 1)
        return at

    def is_alone(self, entry: int) -> bool:
        """Whether what an entry of a table refers to is nobody else's, by its own word and in truth. Of a cluster that
        came during this copy, for a worker that died, the answer is no. Byte 0 is nothing, or the header.
        """
        cluster = (entry & entries.OFFSET) >> self.cluster_bits
        return bool(entry & COPIED and cluster) and self.books.alone(cluster)

    def _plain(self, cluster: int) -> int:
        entry = self.entry(cluster)
        if entry & entries.COMPRESSED or cluster == self.kept or not self.is_alone(entry):
            return self.take_one()
        return entry & entries.OFFSET

    def _covered(self, cluster: int) -> bool:
        return self._marks_zeros

    def entry(self, cluster: int) -> int:
        """The L2 entry of a guest cluster, without its bitmap."""
        number, index = divmod(cluster, self.per_table)
        table = self.tables.get(number)
        return table[index * self.words] if table is not None else 0

    def _fill_zero(self, first: int, end: int) -> None:
        if self._backed or first // self.per_table in self.tables:
            for cluster in range(first, end):
                self._set_zero(cluster)

    def _set_zero(self, cluster: int) -> None:
        if not self._marks_zeros or not (self._backed or self.entry(cluster)):
            return  # nothing there reads as zeros, when nothing is below
        if self.words == 2:
            self._set(cluster, 0, ALL_SUBCLUSTERS << SUBCLUSTERS)
        else:
            self._set(cluster, ZERO if self.options.version == 3 else 0, 0)

    def _set(self, cluster: int, entry: int, bitmap: int) -> None:
        self.changed.add(cluster // self.per_table)
        super()._set(cluster, entry, bitmap)

    def _count(self, cluster: int, by: int) -> None:
        self.books.refer(cluster, by)
