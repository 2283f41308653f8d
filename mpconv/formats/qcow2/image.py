"""A qcow2 image that is read: the tables are fetched when they are needed, guest bytes come from where they lie.

Each L2 table is fetched once, whoever asks first; the rest wait for the same answer. Only tables that nobody used for
long are forgotten, since leases go up the disk. Nothing is read where the tables say that nothing is.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from msgspec import Struct

from mpconv.formats.base import Image
from mpconv.formats.qcow2 import bitmaps, entries, header, snapshots
from mpconv.formats.qcow2.codecs import decompress_into
from mpconv.formats.qcow2.entries import Held, Run
from mpconv.formats.qcow2.header import Header
from mpconv.formats.raw import whole_sectors
from mpconv.model.errors import Fatal, ImageError
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import SECTOR, MiB, align_down, align_up
from mpconv.transports.base import Buffer, Transport, cannot_open

_TABLES_KEPT = 16 * MiB
_SNAPSHOTS_AT_ONCE = MiB
"""More than the largest entry of the snapshot table has."""
_TOGETHER = 2 * MiB
"""Compressed clusters that lie side by side are read in one request of so many bytes."""
_MOST_EXTENTS = 4096
_WORTH_ASKING = MiB
"""Only of so many bytes in one piece is the store asked for holes: it may answer over a network."""

_KINDS = {
    Held.DATA: Kind.DATA,
    Held.COMPRESSED: Kind.DATA,
    Held.ZERO: Kind.ZERO,
    Held.UNALLOCATED: Kind.UNALLOCATED,
}


class Metadata(Struct, frozen=True):
    """What is read when an image is opened. `l1`: of the active state or of a snapshot, host offsets and flags."""

    header: Header
    l1: array[int]
    snapshots: list[snapshots.Snapshot]


async def read_metadata(store: Transport, snapshot: str | None = None) -> Metadata:
    """Header, snapshots, L1 table. ImageError, with the image's name, for what is no qcow2 image or a hostile one."""
    try:
        start = await read(store, 0, min(header.V3_LENGTH, store.size))
        size = header.cluster_size_of(start)
        found = header.parse(await read(store, 0, min(size, store.size)), store.size)
        known = await _snapshots(store, found)
        l1_offset, l1_size = found.l1_offset, found.l1_size
        if snapshot is not None:
            chosen = snapshots.find(known, snapshot)
            l1_offset, l1_size = chosen.l1_offset, chosen.l1_size
            header.check_table("Snapshot L1 table", l1_offset, l1_size * 8, header.LARGEST_L1, size, store.size)
        table = await _read_table(store, l1_offset, l1_size)
        entries.check_l1(table, align_up(store.size, size) // size)
    except ImageError as error:
        if error.why.startswith("Failed to load snapshot"):
            raise
        raise cannot_open(store.name, error.why, ImageError) from error
    return Metadata(found, table, known)


async def _snapshots(store: Transport, found: Header) -> list[snapshots.Snapshot]:
    """The table's length is nowhere written: it is read piece by piece until all of it was there."""
    known: list[snapshots.Snapshot] = []
    names = 0
    at = found.snapshots_offset
    end = min(store.size, at + snapshots.LARGEST_TABLE)
    while len(known) < found.snapshots:
        piece = await read(store, at, max(0, min(_SNAPSHOTS_AT_ONCE, end - at)))
        more, taken = snapshots.parse(piece, found.snapshots - len(known))
        if not more:
            raise ImageError("the snapshot table is cut off or too large")
        known += more
        names += sum(len(one.id) + len(one.name) for one in more)
        if names > snapshots.LARGEST_NAMES:
            raise ImageError("the names of the snapshots are too long")
        at += taken
    return known


async def read_bitmaps(store: Transport, found: Header) -> list[bitmaps.Bitmap]:
    """The persistent bitmaps that count. ImageError, with the image's name, when they are broken."""
    if found.bitmaps is None:
        return []
    count, length, offset = found.bitmaps
    try:
        bitmaps.check_place(count, length, offset, found, store.size)
        there = max(0, min(length, store.size - offset))
        return bitmaps.parse((await read(store, offset, there)).ljust(length, b"\0"), count, found)
    except ImageError as error:
        raise cannot_open(store.name, error.why, ImageError) from None


async def read(store: Transport, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    if length:
        await store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def _read_table(store: Transport, offset: int, count: int) -> array[int]:
    """`count` entries; zeros beyond the file's end. In place, because such a table may have 32 MiB."""
    table = array("Q", (0,)) * count
    there = min(count * 8, max(0, store.size - offset))
    if there:
        await store.read_into(offset, memoryview(table).cast("B")[:there])
    if sys.byteorder == "little":
        table.byteswap()
    return table


class Qcow2Image:
    """One image with what lies below it. `data`: where its guest data lies, the store itself as a rule.

    `keeps_backing`: what the image leaves to its backing file has the status UNALLOCATED, else what that says.
    `trusting`: the stores are asked where they have holes.
    """

    format = "qcow2"
    seams: tuple[int, ...] = ()

    def __init__(
        self,
        store: Transport,
        metadata: Metadata,
        *,
        data: Transport | None = None,
        backing: Image | None = None,
        keeps_backing: bool = False,
        trusting: bool = True,
    ) -> None:
        self.store = store
        self.header = metadata.header
        self.snapshots = metadata.snapshots
        self.data = data or store
        self.backing = backing
        self.size = align_down(self.header.size, SECTOR)
        self._keeps_backing = keeps_backing
        self._trusting = trusting
        self._l1 = metadata.l1
        self._tables: OrderedDict[int, asyncio.Task[array[int]]] = OrderedDict()
        self._tables_kept = max(4, _TABLES_KEPT // self.header.cluster_size)
        self._per_table = self.header.l2_entries << self.header.cluster_bits

    @property
    def stores(self) -> list[Transport]:
        """The image's own file first, then its data file's, then those below."""
        own = [self.store] if self.data is self.store else [self.store, self.data]
        return [*own, *(self.backing.stores if self.backing else [])]

    def locate(self, offset: int, length: int) -> list[tuple[Transport, int, int]]:
        """Nothing is known without asking the tables."""
        return []

    async def close(self) -> None:
        for fetching in self._tables.values():
            fetching.cancel()
        await asyncio.gather(*self._tables.values(), return_exceptions=True)
        await self.store.close()
        if self.data is not self.store:
            await self.data.close()
        if self.backing is not None:
            await self.backing.close()

    def _wrong(self, why: str, at: int, operation: str = "reading") -> ImageError:
        return ImageError(why, operation=operation, image=self.store.name, offset=at)

    async def runs(self, start: int, end: int) -> AsyncIterator[Run]:
        """What this image alone, without its backing file, holds from guest byte `start` up to `end`."""
        at = start
        while at < end:
            index = at // self._per_table
            first = index * self._per_table
            stop = min(end, first + self._per_table)
            offset = self._l2_offset(index)
            if not offset:
                while stop < end and not self._l2_offset(index + 1):
                    index += 1
                    stop = min(end, stop + self._per_table)
                yield Run(Held.UNALLOCATED, at, stop - at)
            else:
                found = await self._table(index, offset)
                try:
                    for run in entries.runs(found, first, at, stop, self.header):
                        yield run
                except ImageError as error:
                    raise self._wrong(error.why, at) from None
            at = stop

    def _l2_offset(self, index: int) -> int:
        """Host byte of an L2 table; 0: there is none."""
        return self._l1[index] & entries.OFFSET if index < len(self._l1) else 0

    async def _table(self, index: int, offset: int) -> array[int]:
        fetching = self._tables.get(index)
        if fetching is None:
            fetching = self._tables[index] = asyncio.get_running_loop().create_task(self._fetch(index, offset))
            if len(self._tables) > self._tables_kept:
                self._forget_one()
        else:
            self._tables.move_to_end(index)
        try:
            return await asyncio.shield(fetching)
        except Fatal:
            self._tables.pop(index, None)
            raise

    def _forget_one(self) -> None:
        for index, fetching in self._tables.items():
            if fetching.done():
                del self._tables[index]
                return

    async def _fetch(self, index: int, offset: int) -> array[int]:
        size = self.header.cluster_size
        guest = index * self._per_table
        if offset % size:
            raise self._wrong(f"L2 table offset {offset:#x} unaligned (L1 index: {index:#x})", guest)
        if offset + size > align_up(self.store.size, size):
            raise self._wrong(f"L2 table at byte {offset} lies beyond the end of the file", guest)
        if offset < size:
            raise self._wrong(f"L2 table offset {offset:#x} lies in the header", guest)
        return await _read_table(self.store, offset, size // 8)

    async def read_bitmaps(self) -> list[bitmaps.Bitmap]:
        """The persistent bitmaps that count."""
        return await read_bitmaps(self.store, self.header)

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """From the tables, and for long runs the store; what is left to a backing file is asked of it, but its own
        holes are zeros here.
        """
        found: list[Extent] = []
        async for run in self.runs(offset, offset + length):
            if run.kind is Held.DATA and run.length >= _WORTH_ASKING and self._trusting:
                found += await self._status_of_data(run)
            elif run.kind is not Held.UNALLOCATED:
                found.append(Extent(run.start, run.length, _KINDS[run.kind]))
            elif self._keeps_backing:
                found += self._left_below(run.start, run.length)
            else:
                found += await self._status_below(run.start, run.length)
            if len(found) >= _MOST_EXTENTS or found[-1].end < run.end:
                break
        return found

    async def _status_of_data(self, run: Run) -> list[Extent]:
        """Where nothing was written yet a preallocated image and a raw data file have holes."""
        assert run.host is not None
        there = min(run.length, self.data.size - run.host)
        if there <= 0:
            return [Extent(run.start, run.length)]
        found = whole_sectors(await self.data.block_status(run.host, there), run.host + there)
        return [Extent(run.start + one.start - run.host, one.length, one.kind) for one in found]

    def _left_below(self, start: int, length: int) -> list[Extent]:
        """What the backing file has; past its end, and without one, there are zeros, whatever another one has there."""
        there = 0 if self.backing is None else max(0, min(length, self.backing.size - start))
        cut = [(start, there, Kind.UNALLOCATED), (start + there, length - there, Kind.ZERO)]
        return [Extent(at, some, kind) for at, some, kind in cut if some]

    async def _status_below(self, start: int, length: int) -> list[Extent]:
        there = 0 if self.backing is None else max(0, min(length, self.backing.size - start))
        if not there or self.backing is None:
            return [Extent(start, length, Kind.ZERO)]
        found = await self.backing.block_status(start, there)
        whole = found[-1].end == self.backing.size and there < length
        return [*found, Extent(start + there, length - there, Kind.ZERO)] if whole else found

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from guest byte `offset`, with as few requests as the layout allows, all at once."""
        parts: list[Callable[[], Coroutine[Any, Any, None]]] = []
        compressed: list[Run] = []
        for run in [run async for run in self.runs(offset, offset + len(buffer))]:
            part = buffer[run.start - offset : run.end - offset]
            match run.kind:
                case Held.DATA:
                    parts.append(partial(self._read_data, run, part))
                case Held.COMPRESSED:
                    compressed.append(run)
                case Held.UNALLOCATED if self.backing is not None and run.start < self.backing.size:
                    parts.append(partial(self._read_below, self.backing, run, part))
                case _:
                    part[:] = bytes(len(part))
        parts += [partial(self._read_compressed, group, offset, buffer) for group in _groups(compressed)]
        # Nothing begins before all of the tables were read, because they may be damaged.
        if len(parts) == 1:
            await parts[0]()
        elif parts:
            await _all([part() for part in parts])

    async def _read_data(self, run: Run, part: Buffer) -> None:
        """A cluster that the file's end cuts off goes on with zeros; one that lies beyond it is lost."""
        assert run.host is not None
        there = min(len(part), self.data.size - run.host)
        if there < len(part):
            cluster = align_down(run.host + max(0, there), self.header.cluster_size)
            if align_up(self.data.size, self.header.cluster_size) < run.host + len(part):
                lost = run.start + max(0, cluster - run.host)
                raise self._wrong(f"its data lies beyond the end of '{self.data.name}': the file is cut off", lost)
            part[max(0, there) :] = bytes(len(part) - max(0, there))
        if there > 0:
            await self.data.read_into(run.host, part[:there])

    async def _read_below(self, backing: Image, run: Run, part: Buffer) -> None:
        there = min(len(part), backing.size - run.start)
        if there < len(part):
            part[there:] = bytes(len(part) - there)
        await backing.read_into(run.start, part[:there])

    async def _read_compressed(self, group: list[Run], offset: int, buffer: Buffer) -> None:
        first = group[0].host or 0
        end = min(self.store.size, max((run.host or 0) + run.stored for run in group))
        if end <= first:
            raise self._wrong("a compressed cluster lies beyond the end of the file", group[0].start)
        stored = memoryview(bytearray(end - first))
        await self.store.read_into(first, stored)
        try:
            await asyncio.to_thread(self._decompress, group, first, stored, offset, buffer)
        except ImageError as error:
            raise self._wrong(error.why, group[0].start) from None

    def _decompress(self, group: list[Run], first: int, stored: memoryview, offset: int, buffer: Buffer) -> None:
        size = self.header.cluster_size
        for run in group:
            at = (run.host or 0) - first
            piece = stored[at : at + run.stored]
            part = buffer[run.start - offset : run.end - offset]
            if run.length == size:
                decompress_into(self.header.compression, piece, part)
            else:
                whole = memoryview(bytearray(size))
                decompress_into(self.header.compression, piece, whole)
                inside = run.start % size
                part[:] = whole[inside : inside + run.length]


def _groups(compressed: list[Run]) -> Iterator[list[Run]]:
    """Those that one request can fetch: they lie side by side, or share a sector."""
    group: list[Run] = []
    end = 0
    for run in compressed:
        host = run.host or 0
        first = (group[0].host or 0) if group else 0
        if group and first <= host <= end and host + run.stored - first <= _TOGETHER:
            group.append(run)
            end = max(end, host + run.stored)
            continue
        if group:
            yield group
        group, end = [run], host + run.stored
    if group:
        yield group


async def _all(parts: list[Coroutine[Any, Any, None]]) -> None:
    """Every one of them ends before an error comes out: their buffers are the caller's again then."""
    for outcome in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
