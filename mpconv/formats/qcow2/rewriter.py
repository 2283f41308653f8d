"""An existing qcow2 image that is written into (`-n`): its tables are read before, and written anew behind the data.

The order keeps every state on disk one that loses nothing but the copy itself: a version 3 image is marked dirty; then
the guest's clusters are written by whoever holds their places; then refcounts, of no cluster lower than before; then L2
tables, then the L1 table, then refcounts as they are, last the mark is taken away; with a flush between each and the
next.
"""

from __future__ import annotations

import struct
from array import array

from msgspec import Struct

from mpconv.formats.qcow2 import entries, header, refcounts
from mpconv.formats.qcow2.check import scan
from mpconv.formats.qcow2.codecs import decompress_into
from mpconv.formats.qcow2.entries import COPIED
from mpconv.formats.qcow2.existing_layout import ExistingLayout
from mpconv.formats.qcow2.image import Metadata, read
from mpconv.formats.qcow2.writer import Steps
from mpconv.model.errors import ImageError
from mpconv.model.extent import Extent
from mpconv.model.units import SECTOR
from mpconv.transports.base import Transport, cannot_open

_INCOMPATIBLE_AT, _AUTOCLEAR_AT = 72, 88
_TABLE_AT = 48


async def load(store: Transport, metadata: Metadata, size: int, *, reads_as_zeros: bool, durable: bool) -> Rewriter:
    """Read all tables. Fatal for an image that cannot be written into."""
    found = metadata.header
    if found.incompatible & header.CORRUPT:
        raise cannot_open(store.name, "qcow2: Image is corrupt; cannot be opened read/write", ImageError)
    if found.incompatible & header.DIRTY:
        why = "its refcounts are not up to date, as it was not closed: run 'qemu-img check -r all' on it first"
        raise cannot_open(store.name, why, ImageError)
    if found.bitmaps is not None:
        why = "it has persistent bitmaps, which would not be right any more: remove them first (qemu-img bitmap)"
        raise cannot_open(store.name, why, ImageError)
    cluster = found.cluster_size
    books = await scan.books(store, metadata)
    table = entries.table(await read(store, found.refcount_table_offset, found.refcount_table_clusters * cluster))
    while table and not table[-1]:
        table.pop()
    for entry in table:
        if entry:
            _check(store, "refcount block", entry & refcounts.PLACE, cluster)
    tables: dict[int, array[int]] = {}
    per_table = found.l2_entries * cluster
    for number in range(-(-size // per_table)):
        offset = metadata.l1[number] & entries.OFFSET
        if offset:
            _check(store, "L2 table", offset, cluster)
            tables[number] = entries.table(await read(store, offset, cluster))
    layout = ExistingLayout(
        size,
        found,
        l1=metadata.l1,
        tables=tables,
        books=books,
        clusters=-(-store.size // cluster) if store.growing else 0,
        reads_as_zeros=reads_as_zeros,
    )
    return Rewriter(store, layout, found, table, durable=durable)


def _check(store: Transport, what: str, offset: int, cluster: int) -> None:
    if offset % cluster or offset + cluster > store.size:
        raise cannot_open(store.name, f"{what} at byte {offset} is not in the file: the image is damaged", ImageError)


class Tail(Struct, frozen=True):
    """What the image holds from guest byte `start` on, behind the last byte that is written, in the same cluster."""

    start: int
    content: bytes


class _Plan(Struct, frozen=True):
    """Of the last writes. `places`: of L2 tables, by number; `blocks`: numbers of the refcount blocks that change;
    `made`: of those that are new; `l1`: whether it changes.
    """

    places: dict[int, int]
    blocks: list[int]
    made: set[int]
    l1: bool


class Rewriter(Steps):
    """As Writer. `table`: host offsets of the refcount blocks. `data`: the external data file, if there is one."""

    def __init__(
        self, store: Transport, layout: ExistingLayout, found: header.Header, table: array[int], *, durable: bool
    ) -> None:
        super().__init__(store, durable=durable)
        self.layout = layout
        self.data: Transport | None = None
        self.tail: Tail | None = None
        self._header = found
        self._table = table
        self._capacity = found.refcount_table_clusters * found.cluster_size // 8
        self._start = b""
        self._plan: _Plan | None = None
        self._unmarked = False

    async def begin(self) -> None:
        """Mark it."""
        self._start = await read(self.store, 0, SECTOR)
        await self._mark(dirty=True)

    async def _mark(self, *, dirty: bool) -> None:
        """Version 2 has no marks."""
        start = bytearray(self._start)
        if self._header.version == 3:
            flags = self._header.incompatible | (header.DIRTY if dirty else 0)
            struct.pack_into(">Q", start, _INCOMPATIBLE_AT, flags)
            struct.pack_into(">Q", start, _AUTOCLEAR_AT, self._header.autoclear & header.DATA_FILE_RAW)
        self._start = bytes(start)
        await self._write(0, self._start)
        await self._flush()

    async def _keep_tail(self, tail: Tail) -> None:
        layout, size = self.layout, self.layout.cluster_size
        cluster = tail.start // size
        if self.data is not None:  # where the new bytes lie already, zeros too, whatever was there
            await self.data.write(tail.start, memoryview(tail.content))
            if self._durable:
                await self.data.flush()
            layout.wrote(Extent(cluster * size, size), [size], [cluster * size], [entries.ALL_SUBCLUSTERS])
            return
        entry = layout.entry(cluster)
        content = bytearray(size)
        whole = memoryview(content)
        if entry & entries.COMPRESSED:
            host, stored = entries.compressed_place(entry, layout.cluster_bits)
            decompress_into(layout.options.compression_type, memoryview(await read(self.store, host, stored)), whole)
        elif entry & entries.OFFSET:
            await self.store.read_into(entry & entries.OFFSET, whole)
        inside = tail.start % size
        whole[inside : inside + len(tail.content)] = tail.content
        place = layout.take_one()
        await self._write(place, bytes(content))
        await self._flush()  # before it counts: done again, it must begin from what the image had
        layout.wrote(Extent(cluster * size, size), [size], [place], [entries.ALL_SUBCLUSTERS])

    async def finish(self) -> None:
        """The guest's bytes are written and flushed. When a connection was lost it is called again: the same is written
        to the same places, in the same order, under the mark.
        """
        if self.tail is not None:
            await self._keep_tail(self.tail)
            self.tail = None
        layout = self.layout
        plan = self._plan = self._plan or self._planned()
        if self._unmarked:  # so all that the header names is there
            await self._mark(dirty=True)
        await self._write_refcounts(plan, lower=False)
        for number in sorted(layout.changed):
            await self._write(plan.places[number], entries.packed(layout.tables[number]))
        await self._flush()
        if plan.l1:
            await self._write(self._header.l1_offset, entries.packed(layout.existing_l1))
            await self._flush()
        await self._write_refcounts(plan, lower=True)
        self._unmarked = True
        await self._mark(dirty=False)

    def _planned(self) -> _Plan:
        l1 = self.layout.existing_l1[:]
        places = self._tables_places()
        made = self._refcounts_places()
        return _Plan(places, self.layout.books.blocks(), made, l1 != self.layout.existing_l1)

    def _tables_places(self) -> dict[int, int]:
        """Where each changed L2 table lies from now on: a new one, and one that a snapshot has too, somewhere else."""
        layout, bits = self.layout, self.layout.cluster_bits
        places = {}
        for number in sorted(layout.changed):
            entry = layout.existing_l1[number]
            offset = entry & entries.OFFSET
            if not layout.is_alone(entry):
                if offset:
                    layout.books.refer(offset >> bits, -1)
                offset = layout.take_one()
                layout.books.refer(offset >> bits, 1)
                layout.existing_l1[number] = COPIED | offset
            places[number] = offset
        return places

    def _refcounts_places(self) -> set[int]:
        """Room for refcount blocks that were not there; numbers of the new ones. The table may have to be longer."""
        layout = self.layout
        made: set[int] = set()
        while True:
            blocks = layout.books.blocks()
            wanted = blocks[-1] + 1 if blocks else 0
            self._table.extend([0] * (wanted - len(self._table)))
            missing = [number for number in blocks if not self._table[number]]
            if not missing and wanted <= self._capacity:
                return made
            for number in missing:
                self._table[number] = layout.take_one()
                layout.books.refer(self._table[number] >> layout.cluster_bits, 1)
                made.add(number)
            if len(self._table) > self._capacity:
                self._move_table()

    def _move_table(self) -> None:
        layout, size = self.layout, self.layout.cluster_size
        (old,) = struct.unpack_from(">Q", self._start, _TABLE_AT)
        for cluster in range(self._capacity * 8 // size):
            layout.books.refer((old >> layout.cluster_bits) + cluster, -1)
        clusters = -(-len(self._table) * 8 // size) + 1
        at = layout.take_for_tables(clusters)
        self._capacity = clusters * size // 8
        start = bytearray(self._start)
        struct.pack_into(">QI", start, _TABLE_AT, at, clusters)
        self._start = bytes(start)

    async def _write_refcounts(self, plan: _Plan, *, lower: bool) -> None:
        """Blocks that change, then the table, then the header that names it. `lower`: also what becomes less."""
        layout, size = self.layout, self.layout.cluster_size
        order = layout.options.refcount_order
        for number in plan.blocks:
            at = self._table[number] & refcounts.PLACE
            fresh = number in plan.made and not lower
            block = bytearray(size) if fresh else bytearray(await read(self.store, at, size))
            for index, before, after in layout.books.changes(number):
                refcounts.put(block, order, index, after if lower else max(before, after))
            await self._write(at, bytes(block))
        await self._flush()
        if plan.made and not lower:
            at = struct.unpack_from(">Q", self._start, _TABLE_AT)[0]
            await self._write(at, entries.packed(self._table).ljust(self._capacity * 8, b"\0"))
            await self._flush()
            await self._write(0, self._start)
            await self._flush()
