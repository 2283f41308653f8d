"""The books of a qcow2 image that is written into: what a check calls an error is one here, with one exception. Pure.

An entry without COPIED whose cluster has the refcount 1 is taken at its word: the cluster is not its own. So it is not
written in place, whoever else refers to it, and nobody else writes it in place either. Everything else ends it before
the first write: two that both say that they have a cluster alone, data over tables, a refcount that is too low, what is
misaligned or lies behind the end.
"""

from __future__ import annotations

import re

from mpconv.formats.qcow2.check.accounts import Accounts
from mpconv.formats.qcow2.check.counts import Counts, Findings
from mpconv.formats.qcow2.check.owners import Books
from mpconv.formats.qcow2.entries import COPIED, OFFSET
from mpconv.formats.qcow2.header import Header
from mpconv.model.errors import ImageError

_STRIDE = 1 << 16
_MOST_LOOSE = 1 << 16
_ANY = re.compile(rb"[^\0]")


class Damage(ImageError):
    """What was found, in the words of a check."""


class _Strict(Findings):
    """The first error is the end; what is only lost to use is no error."""

    def corrupt(self, line: str, times: int = 1) -> None:
        raise Damage(line.partition("\n")[0])

    def unknown(self, line: str) -> None:
        raise Damage(line)


class TargetAccounts(Accounts):
    """Damage comes out of everything."""

    def __init__(self, header: Header, file_size: int) -> None:
        super().__init__(header, file_size, lambda line: None)
        self.findings = _Strict(lambda line: None)
        self._tables = Counts(self._counted.clusters, self._counted.most)
        """References by what is no guest's data."""
        self._loose: dict[int, int] = {}
        """Clusters with the refcount 1, and how many entries say that they are not theirs alone."""
        self._loose_tables: set[int] = set()

    def refer(self, offset: int, length: int, times: int = 1) -> None:
        super().refer(offset, length, times)
        if length:
            first, last = offset >> self._bits, (offset + length - 1) >> self._bits
            self._tables.add(first, last + 1 - first, min(times, self._tables.most))

    def _refer_new(self, clusters: list[int]) -> int:
        new = super()._refer_new(clusters)
        self._tables.add_new(clusters[:new])
        return new

    def _wrong_table_flag(self, entry: int, times: int, index: int, refcount: int) -> None:
        if entry & COPIED:
            super()._wrong_table_flag(entry, times, index, refcount)
        self._loose_tables.add((entry & OFFSET) >> self._bits)

    def _wrong_flag(self, entry: int, times: int, refcount: int) -> None:
        if entry & COPIED:
            super()._wrong_flag(entry, times, refcount)
        if self.header.external_data:
            return
        cluster = (entry & OFFSET) >> self._bits
        self._loose[cluster] = self._loose.get(cluster, 0) + times
        if len(self._loose) > _MOST_LOOSE:
            raise Damage(f"more than {_MOST_LOOSE} data clusters have the refcount 1 and no COPIED flag")

    def books(self, clusters: int) -> Books:
        """All is counted. `clusters`: as many as the file has, when it can grow."""
        header = self.header
        for what, offset, length in (
            ("header", 0, self._size),
            ("L1 table", header.l1_offset, header.l1_size * 8),
            ("refcount table", header.refcount_table_offset, header.refcount_table_clusters * self._size),
        ):
            first, end = offset >> self._bits, -(-(offset + length) // self._size)
            if length and self._counted.ones(first, end - first) != end - first:
                raise Damage(f"something lies over the {what}")
        for cluster in self._loose:
            if self._tables[cluster]:
                raise Damage(f"a data cluster lies over a table, at byte {cluster << self._bits}")
        for cluster in self._loose_tables:
            if self._counted[cluster] != 1:
                raise Damage(f"something lies over the L2 table at byte {cluster << self._bits}")
        self._check_refcounts()
        return Books(self._counted, self.stored, clusters=clusters, per_block=self.per_block)

    def _check_refcounts(self) -> None:
        """None may be too low, but for those that say so themselves."""
        for first in range(0, self._clusters, _STRIDE):
            end = min(self._clusters, first + _STRIDE)
            counted = self._counted.parts(first, end)
            if (len(counted) == 1 and counted[0].count(0) == end - first) or counted == self.stored.parts(first, end):
                continue
            for cluster in {first + found.start() for part in counted for found in _ANY.finditer(part)}:
                refcount, references = self.stored[cluster], self._counted[cluster]
                if refcount < references - self._loose.get(cluster, 0):
                    raise Damage(f"ERROR cluster {cluster} refcount={refcount} reference={references}")
