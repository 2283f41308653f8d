"""L2 tables: entries -> runs of the guest disk, and back. Pure.

The rules are those of QEMU's qcow2_get_cluster_type and qcow2_get_subcluster_type; what it calls corruption is an
ImageError here.
"""

from __future__ import annotations

import enum
import sys
from array import array
from collections.abc import Iterator

from msgspec import Struct

from mpconv.formats.qcow2.header import Header
from mpconv.model.errors import ImageError
from mpconv.model.units import SECTOR

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET = 0x00FF_FFFF_FFFF_FE00
SUBCLUSTERS = 32
_MOST_COMPARED = 1 << 18
"""L1 entries; of more there is no telling in little memory which ones are alike."""
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1


class Held(enum.IntEnum):
    """What an image itself knows of a range."""

    DATA = 0
    ZERO = 1
    UNALLOCATED = 2
    COMPRESSED = 3


class Run(Struct, frozen=True):
    """`length` guest bytes from `start`. `host`: the byte of the data file where DATA lies, or of a compressed cluster;
    for ZERO and UNALLOCATED where there is room for it all the same, else None. `stored`: bytes of a compressed
    cluster, at most.
    """

    kind: Held
    start: int
    length: int
    host: int | None = None
    stored: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


def table(data: bytes | memoryview) -> array[int]:
    """Big-endian 64-bit entries."""
    entries = array("Q")
    entries.frombytes(data)
    return big_endian(entries)


def check_l1(l1: array[int], clusters: int) -> None:
    """ImageError when more L2 tables are named than the file's clusters, or one of them twice: no image needs that, and
    a small file would hold a disk that takes hours to walk.
    """
    used = len(l1) - l1.count(0)
    if used > clusters:
        raise ImageError(f"the L1 table names {used} L2 tables, but the file has {clusters} clusters: it is damaged")
    if used > _MOST_COMPARED:
        return
    offsets = [entry & OFFSET for entry in l1 if entry & OFFSET]
    if len(set(offsets)) < len(offsets):
        raise ImageError("the L1 table names one L2 table twice: it is damaged")


def packed(entries: array[int]) -> bytes:
    """The other way round."""
    return big_endian(entries[:]).tobytes()


def big_endian(numbers: array[int]) -> array[int]:
    """The same array, its bytes turned between the host's order and big-endian."""
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(host byte, bytes) of a compressed cluster: to the end of its last sector, so it may be fewer."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = ((entry & ~(COPIED | COMPRESSED)) >> shift) + 1
    return offset, sectors * SECTOR - offset % SECTOR


def compressed_entry(offset: int, length: int, cluster_bits: int) -> int:
    """The L2 entry of `length` compressed bytes at host byte `offset`."""
    shift = 62 - (cluster_bits - 8)
    sectors = (offset + length - 1) // SECTOR - offset // SECTOR
    return COMPRESSED | sectors << shift | offset


def runs(entries: array[int], first: int, start: int, end: int, header: Header) -> Iterator[Run]:
    """What lies from guest byte `start` up to `end`, all in one L2 table whose entry 0 is at guest byte `first`.

    Ascending, without gaps; neighbours are joined where one request can serve both.
    """
    last: Run | None = None
    for run in _clusters(entries, first, start, end, header):
        if last is not None and _joins(last, run):
            last = Run(last.kind, last.start, last.length + run.length, last.host)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _joins(one: Run, other: Run) -> bool:
    if one.kind is not other.kind or one.kind is Held.COMPRESSED:
        return False
    return other.host == (None if one.host is None else one.host + one.length)


def _clusters(entries: array[int], first: int, start: int, end: int, header: Header) -> Iterator[Run]:
    """One cluster or less each; what is unallocated, and data that goes on without a gap, in one piece."""
    bits, wide = header.cluster_bits, header.extended_l2
    size = 1 << bits
    at = start
    index = (start - first) >> bits
    while at < end:
        stop = min(end, first + ((index + 1) << bits))
        entry = entries[2 * index] if wide else entries[index]
        if entry == 0 and not wide:
            while stop < end and not entries[index + 1]:
                index += 1
                stop = min(end, stop + size)
            yield Run(Held.UNALLOCATED, at, stop - at)
        elif entry & COMPRESSED:
            yield _compressed(entry, first + (index << bits), at, stop, header)
        elif wide:
            yield from _subclusters(entry, entries[2 * index + 1], first + (index << bits), at, stop, header)
        else:
            cluster = first + (index << bits)
            if entry & OFFSET and not entry & ZERO:
                following = entry + size
                while stop < end and entries[index + 1] == following and following & OFFSET:
                    following += size
                    index += 1
                    stop = min(end, stop + size)
            yield _plain(entry, cluster, at, stop, header)
        at = stop
        index += 1


def _compressed(entry: int, cluster: int, at: int, stop: int, header: Header) -> Run:
    if header.external_data:
        raise ImageError(f"Compressed cluster entry found in image with external data file (at guest byte {cluster})")
    offset, length = compressed_place(entry, header.cluster_bits)
    return Run(Held.COMPRESSED, at, stop - at, offset, length)


def _host(entry: int, cluster: int, header: Header) -> int | None:
    """Where the cluster lies; None for nowhere."""
    offset = entry & OFFSET
    if offset % header.cluster_size:
        raise ImageError(f"Cluster allocation offset {offset:#x} unaligned (at guest byte {cluster})")
    if header.external_data and offset != cluster and (offset or entry & COPIED):
        raise ImageError(
            f"External data file host cluster offset {offset:#x} does not match guest cluster offset: {cluster:#x}"
        )
    if not offset and not (header.external_data and entry & COPIED):
        return None
    return offset


def _plain(entry: int, cluster: int, at: int, stop: int, header: Header) -> Run:
    host = _host(entry, cluster, header)
    inside = None if host is None else host + at - cluster
    if entry & ZERO:
        if header.version < 3:
            raise ImageError(f"Zero cluster entry found in pre-v3 image (at guest byte {cluster})")
        return Run(Held.ZERO, at, stop - at, inside)
    return Run(Held.UNALLOCATED if host is None else Held.DATA, at, stop - at, inside)


def _subclusters(entry: int, bitmap: int, cluster: int, at: int, stop: int, header: Header) -> Iterator[Run]:
    allocated, zero = bitmap & ALL_SUBCLUSTERS, bitmap >> SUBCLUSTERS
    host = _host(entry, cluster, header)
    if allocated & zero or (host is None and allocated):
        raise ImageError(f"Invalid subcluster bitmap {bitmap:#x} (at guest byte {cluster})")
    size = header.cluster_size // SUBCLUSTERS
    alike = {ALL_SUBCLUSTERS: Held.DATA, ALL_SUBCLUSTERS << SUBCLUSTERS: Held.ZERO, 0: Held.UNALLOCATED}.get(bitmap)
    if alike is not None:
        yield Run(alike, at, stop - at, None if host is None else host + at - cluster)
        return
    while at < stop:
        bit = 1 << (at - cluster) // size
        end = min(stop, cluster + ((at - cluster) // size + 1) * size)
        inside = None if host is None else host + at - cluster
        if zero & bit:
            yield Run(Held.ZERO, at, end - at, inside)
        elif allocated & bit:
            yield Run(Held.DATA, at, end - at, inside)
        else:
            yield Run(Held.UNALLOCATED, at, end - at, inside)
        at = end
