"""The books of a qcow2 image: who refers to which host cluster, and what the image itself says of that. Pure.

The rules, the words and the counts are those of QEMU 7.2's qcow2_check_refcounts. A table that several others point to
is looked at once, with the number of them; one at an unaligned place is an error and is not looked into.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from msgspec import Struct

from mpconv.formats.qcow2 import entries
from mpconv.formats.qcow2.check.counts import LARGEST_COUNT, Counts, Findings, last_used
from mpconv.formats.qcow2.entries import COMPRESSED, COPIED, OFFSET, SUBCLUSTERS, ZERO
from mpconv.formats.qcow2.header import LARGEST_L1, Header
from mpconv.formats.qcow2.snapshots import Snapshot
from mpconv.model.errors import ImageError
from mpconv.model.units import SECTOR, align_up

_L1_RESERVED = 0x7F00_0000_0000_01FF
_L2_RESERVED = 0x3F00_0000_0000_01FE
REFCOUNT_RESERVED = 0x1FF
_ALLOCATED = (1 << SUBCLUSTERS) - 1
_STRIDE, _FINE = 1 << 16, 1 << 8
_BEYOND = 1 << 24
"""Clusters beyond the end of the file whose refcounts are looked at: the file may have been cut off."""


class Uses(Struct):
    """How often a table is referred to: by all L1 tables, and by the active one."""

    all: int = 0
    active: int = 0


class Report(Struct, frozen=True, kw_only=True):
    """What a check found. `total`, `allocated`, `fragmented`, `compressed`: clusters of the guest's disk; `end`: the
    byte after the last host cluster in use. `corruptions`, `leaks` and `check_errors`, what could not be looked at: how
    many there are.
    """

    corruptions: int
    leaks: int
    check_errors: int
    total: int
    allocated: int
    fragmented: int
    compressed: int
    end: int

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return not (self.corruptions or self.leaks or self.check_errors)


class Accounts:
    """References counted one after the other; `stored` must be loaded before the L1 and L2 tables are."""

    def __init__(self, header: Header, file_size: int, tell: Callable[[str], None]) -> None:
        self.header = header
        self.findings = Findings(tell)
        self._file_size = file_size
        self._size = header.cluster_size
        self._bits = header.cluster_bits
        self._clusters = align_up(file_size, self._size) >> self._bits
        if self._clusters > LARGEST_COUNT:
            raise ImageError("Check failed: File too large")
        most = (1 << header.refcount_bits) - 1
        self._counted = Counts(self._clusters + 1, most)
        self.per_block = (self._size << 3) >> header.refcount_order
        covered = header.refcount_table_clusters * self._size // 8 * self.per_block
        self.stored = Counts(max(self._clusters + 1, min(covered, self._clusters + _BEYOND)), most)
        self._unknown: set[int] = set()
        self._allocated = self._fragmented = self._compressed = 0

    def refer(self, offset: int, length: int, times: int = 1) -> None:
        """Bytes of the file are in use by what is no guest's. The last cluster may lie partly beyond the file's end."""
        self._refer(offset, length, times)

    def _refer(self, offset: int, length: int, times: int) -> None:
        if not length:
            return
        if offset + length - self._file_size >= self._size:
            self.findings.corrupt(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
                f"offset {offset:#x} size {length:#x}",
                times,
            )
            return
        first, last = offset >> self._bits, (offset + length - 1) >> self._bits
        if last >= self._clusters:
            self._clusters = last + 1
        for cluster, by in self._counted.add(first, last + 1 - first, times):
            self.findings.corrupt(
                f"ERROR: overflow cluster offset={cluster << self._bits:#x}\n"
                "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if "
                "the image cannot be opened for writing",
                by,
            )

    def snapshot(self, index: int, snapshot: Snapshot) -> bool:
        """Whether its L1 table can be looked at."""
        if self.header.version > 2 and snapshot.disk_size is None:
            self.findings.corrupt(f"ERROR snapshot table entry {index} is incomplete")
        name = f"ERROR snapshot {snapshot.id} ({snapshot.name})"
        if snapshot.l1_offset % self._size:
            self.findings.corrupt(
                f"{name} l1_offset={snapshot.l1_offset:#x}: L1 table is not cluster aligned; snapshot table entry "
                "corrupted"
            )
        elif snapshot.l1_size * 8 > LARGEST_L1:
            self.findings.corrupt(
                f"{name} l1_size={snapshot.l1_size:#x}: L1 table is too large; snapshot table entry corrupted"
            )
        else:
            return True
        return False

    def l1_entry(self, entry: int, times: int, active_at: int | None) -> int | None:
        """The offset of an L2 table that can be looked at. `active_at`: its index in the active L1 table."""
        offset = entry & OFFSET
        if entry & _L1_RESERVED:
            self.findings.corrupt(f"ERROR found L1 entry with reserved bits set: {entry:x}", times)
        self.refer(offset, self._size, times)
        if active_at is not None and offset:
            refcount = self.stored[offset >> self._bits]
            if (refcount == 1) != bool(entry & COPIED) and not self._is_unknown(offset):
                self._wrong_table_flag(entry, times, active_at, refcount)
        if offset % self._size:
            self.findings.corrupt(
                f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted", times
            )
            return None
        return offset

    def l2_table(self, table: array[int], uses: Uses, *, in_place: bool = True) -> None:
        """All that it refers to. `in_place`: the flags that allow writing in place are looked at too."""
        wide = self.header.extended_l2
        found = table[0::2] if wide else table
        bitmaps = table[1::2] if wide else None
        size, count = self._size, len(found)
        unusual = _L2_RESERVED | (size - 1) & OFFSET
        following = 0
        index = 0
        while index < count:
            entry = found[index]
            if entry & COMPRESSED:
                self._compressed_cluster(entry, bitmaps[index] if bitmaps else 0, index, uses)
                index += 1
                continue
            if not entry & OFFSET and not self._is_first_cluster(entry):
                if entry or bitmaps:
                    self._unallocated(entry, bitmaps[index] if bitmaps else 0, uses)
                index += 1
                continue
            offset = entry & OFFSET
            end = index + 1
            if not (entry & unusual or bitmaps) or self._looks_right(entry, bitmaps[index] if bitmaps else 0, uses):
                expected = entry + size
                while end < count and found[end] == expected and not (bitmaps and _is_nonsense(bitmaps[end])):
                    end += 1
                    expected += size
            self._allocated += uses.active * (end - index)
            if following and offset != following:
                self._fragmented += uses.active
            following = offset + size * (end - index)
            self._refer_to_data(offset, end - index, uses.all)
            if uses.active and in_place:
                self._check_copied(entry, end - index, uses.active)
            index = end

    def _is_first_cluster(self, entry: int) -> bool:
        """Of a data file, where offset 0 is as good as any other."""
        zero = entry & ZERO and not self.header.extended_l2
        return bool(self.header.external_data and entry & COPIED and not zero)

    def _unallocated(self, entry: int, bitmap: int, uses: Uses) -> None:
        self._check_reserved(entry, uses)
        if bitmap & _ALLOCATED:
            self.findings.corrupt("ERROR: Unallocated cluster has non-zero subcluster allocation map", uses.all)

    def _check_reserved(self, entry: int, uses: Uses) -> bool:
        if entry & _L2_RESERVED:
            self.findings.corrupt(f"ERROR found l2 entry with reserved bits set: {entry:x}", uses.all)
            return False
        return True

    def _looks_right(self, entry: int, bitmap: int, uses: Uses) -> bool:
        right = self._check_reserved(entry, uses)
        offset = entry & OFFSET
        if _is_nonsense(bitmap):
            self.findings.corrupt(
                f"ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap", uses.all
            )
        if offset % self._size:
            holds_data = bitmap & _ALLOCATED if self.header.extended_l2 else not entry & ZERO
            what = "Data cluster" if holds_data else "Preallocated cluster"
            self.findings.corrupt(
                f"ERROR offset={offset:x}: {what} is not properly aligned; L2 entry corrupted.", uses.all
            )
            return False
        return right

    def _refer_to_data(self, offset: int, count: int, times: int) -> None:
        if self.header.external_data:
            return
        if offset + count * self._size - self._file_size < self._size:
            self._refer(offset, count * self._size, times)
            return
        for number in range(count):
            self._refer(offset + number * self._size, self._size, times)

    def _compressed_cluster(self, entry: int, bitmap: int, index: int, uses: Uses) -> None:
        offset, length = entries.compressed_place(entry, self._bits)
        if entry & COPIED:
            self.findings.corrupt(
                f"ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters", uses.all
            )
        entry &= ~COPIED
        if self.header.external_data:
            self.findings.corrupt(f"ERROR compressed cluster {index} with data file, entry={entry:#x}", uses.all)
        elif bitmap:
            self.findings.corrupt(
                f"ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={entry:#x}",
                uses.all,
            )
        else:
            self._refer(offset, length, uses.all)
            self._allocated += uses.active
            self._compressed += uses.active
            self._fragmented += uses.active

    def _check_copied(self, entry: int, count: int, times: int) -> None:
        """COPIED is set where the refcount is 1 and nowhere else: only then a cluster is written to in place."""
        copied = bool(entry & COPIED)
        first = (entry & OFFSET) >> self._bits
        if self.header.external_data:
            right = count if copied else 0
        else:
            ones = self.stored.ones(first, count)
            right = ones if copied else count - ones
        if right == count:
            return
        for number in range(count):
            found = entry + number * self._size
            refcount = 1 if self.header.external_data else self.stored[first + number]
            if (refcount == 1) != copied and not self._is_unknown(found & OFFSET):
                self._wrong_flag(found, times, refcount)

    def _wrong_table_flag(self, entry: int, times: int, index: int, refcount: int) -> None:
        self.findings.corrupt(
            f"ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}", times
        )

    def _wrong_flag(self, entry: int, times: int, refcount: int) -> None:
        self.findings.corrupt(f"ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}", times)

    def refcount_table(self, table: array[int]) -> None:
        """The last ones to be counted: nothing else may refer to a refcount block."""
        sound = self._refer_to_blocks(table)
        for index in range(sound, len(table)):
            entry = table[index]
            if not entry:
                continue
            offset = entry & ~REFCOUNT_RESERVED
            if entry & REFCOUNT_RESERVED:
                self.findings.corrupt(f"ERROR refcount table entry {index} has reserved bits set")
            elif offset % self._size:
                self.findings.corrupt(
                    f"ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                )
            elif offset >> self._bits >= self._clusters:
                self.findings.corrupt(f"ERROR refcount block {index} is outside image")
            else:
                self.refer(offset, self._size)
                refcount = self._counted[offset >> self._bits]
                if refcount != 1:
                    self.findings.corrupt(f"ERROR refcount block {index} refcount={refcount}")

    def _refer_to_blocks(self, table: array[int]) -> int:
        """A million blocks that lie soundly are counted at once; how many entries of the table are done with."""
        done = 0
        for first in range(0, len(table), _STRIDE):
            part = table[first : first + _STRIDE]
            places = [entry >> self._bits for entry in part if entry]
            if places and (max(places) >= self._clusters or any(entry & (self._size - 1) for entry in part)):
                break
            new = self._refer_new(places)
            if new < len(places):
                return first + [index for index, entry in enumerate(part) if entry][new]
            done = first + len(part)
        return done

    def _refer_new(self, clusters: list[int]) -> int:
        """Each is in use once more, up to the first that was in use before; how many those are."""
        return self._counted.add_new(clusters)

    def unreadable_block(self, index: int) -> None:
        """The refcounts in block `index` cannot be known."""
        self._unknown.add(index)

    def _is_unknown(self, offset: int) -> bool:
        return (offset >> self._bits) // self.per_block in self._unknown

    def compare(self) -> Report:
        """What was counted with what is stored."""
        used = 0
        for first in range(0, self._clusters, _STRIDE):
            used = max(used, self._compare(first, min(self._clusters, first + _STRIDE), _FINE))
        sectors = self.header.size // SECTOR * SECTOR
        return Report(
            corruptions=self.findings.corruptions,
            leaks=self.findings.leaks,
            check_errors=self.findings.check_errors,
            total=-(-sectors // self._size),
            allocated=self._allocated,
            fragmented=self._fragmented,
            compressed=self._compressed,
            end=max(1, used) << self._bits,
        )

    def _compare(self, first: int, end: int, step: int) -> int:
        """The place after the last cluster that is in use, or counts as such; 0: none of them."""
        stored, counted = self.stored.parts(first, end), self._counted.parts(first, end)
        blocks = range(first // self.per_block, (end - 1) // self.per_block + 1)
        unknown = not self._unknown.isdisjoint(blocks)
        if stored == counted and not unknown:
            used = last_used(stored)
            return first + used if used else 0
        if step > 1:
            return max(self._compare(at, min(end, at + step), 1) for at in range(first, end, step))
        used = 0
        for cluster in range(first, end) if unknown else _differing(first, stored, counted):
            if self._is_unknown(cluster << self._bits):
                self.findings.unknown(f"Can't get refcount for cluster {cluster}: Input/output error")
                continue
            refcount, references = self.stored[cluster], self._counted[cluster]
            if refcount or references:
                used = cluster + 1
            if refcount < references:
                self.findings.corrupt(f"ERROR cluster {cluster} refcount={refcount} reference={references}")
            elif refcount > references:
                self.findings.leaked(f"Leaked cluster {cluster} refcount={refcount} reference={references}")
        if unknown:
            return used
        return first + max(last_used(stored), last_used(counted))


def _differing(first: int, stored: list[bytes], counted: list[bytes]) -> list[int]:
    """The clusters, from `first` on, of which any digit differs."""
    if len(stored) == len(counted) == 1:
        return [first + at for at, (one, other) in enumerate(zip(stored[0], counted[0], strict=True)) if one != other]
    return list(range(first, first + len(stored[0])))


def _is_nonsense(bitmap: int) -> bool:
    """A subcluster cannot be both allocated and zero."""
    return bool(bitmap >> SUBCLUSTERS & bitmap)
