"""Where the clusters of a qcow2 image lie that existed before it is written into (`-n`). Pure.

A cluster that the image has alone is written where it is; another one, of a snapshot, compressed or not there, gets a
host cluster that was free before. What is freed meanwhile is used by nobody until the copy is over, since the tables on
disk still name it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mpconv.formats.qcow2 import entries
from mpconv.formats.qcow2.entries import ALL_SUBCLUSTERS, SUBCLUSTERS, ZERO
from mpconv.formats.qcow2.header import DATA_FILE_RAW, LAZY_REFCOUNTS, Header
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options


def options_of(header: Header) -> Qcow2Options:
    """How the image would be made."""
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
        data_file_raw=bool(header.autoclear & DATA_FILE_RAW),
    )


class ExistingLayout(Layout):
    """`size`: guest bytes that are written, at most the image's. `l1`, `tables` and `references`: as they are, of
    `host_clusters` in all. `reads_as_zeros`: the user's word for it, so that zeros are left out.
    """

    def __init__(
        self,
        size: int,
        header: Header,
        *,
        l1: array[int],
        tables: dict[int, array[int]],
        references: array[int],
        host_clusters: int,
        reads_as_zeros: bool,
    ) -> None:
        super().__init__(size, options_of(header))
        self.existing_l1 = l1
        self.tables = tables
        self.references = references
        self._next = max(len(references), host_clusters)
        self.references.extend([0] * (self._next - len(references)))
        self.before = array("Q", self.references)
        """The refcounts as they are on disk."""
        self.changed: set[int] = set()
        """Numbers of the L2 tables that are not any more what is on disk."""
        self._marks_zeros = not reads_as_zeros
        self._free = self._unused()
        self.kept: int | None = None
        """The guest cluster that keeps old bytes behind the new ones: it is never written in place."""

    def _unused(self) -> Iterator[int]:
        for cluster, count in enumerate(self.before):
            if not count:
                yield cluster

    def take_one(self) -> int:
        """The host byte of a cluster that was free when the copy began."""
        cluster = next(self._free, None)
        return self.take(1) if cluster is None else cluster << self.cluster_bits

    def _plain(self, cluster: int) -> int:
        entry = self.entry(cluster)
        usable = not entry & entries.COMPRESSED and cluster != self.kept
        number = (entry & entries.OFFSET) >> self.cluster_bits if usable else 0
        # Of a cluster that came during this copy, for a worker that died, `before` knows nothing, or that it was free.
        alone = 0 < number < len(self.before) and self.before[number] == 1
        return number << self.cluster_bits if alone else self.take_one()

    def _covered(self, cluster: int) -> bool:
        return self._marks_zeros

    def entry(self, cluster: int) -> int:
        """The L2 entry of a guest cluster, without its bitmap."""
        number, index = divmod(cluster, self.per_table)
        table = self.tables.get(number)
        return table[index * self.words] if table is not None else 0

    def _fill_zero(self, first: int, end: int) -> None:
        for cluster in range(first, end):
            self._set_zero(cluster)

    def _set_zero(self, cluster: int) -> None:
        if not self._covered(cluster):
            return
        if self.words == 2:
            self._set(cluster, 0, ALL_SUBCLUSTERS << SUBCLUSTERS)
        else:
            self._set(cluster, ZERO if self.options.version == 3 else 0, 0)

    def _set(self, cluster: int, entry: int, bitmap: int) -> None:
        self.changed.add(cluster // self.per_table)
        super()._set(cluster, entry, bitmap)
