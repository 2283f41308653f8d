"""A new qcow2 image: what is written before the guest's bytes, and behind them.

The order makes a crash at any moment leave an image that nobody takes for complete: first a header without tables, then
the guest's clusters by whoever holds their places, then L2 tables and the L1 table, then refcounts, last the header
that names them; with a flush between each and the next.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from mpconv.formats.qcow2 import entries, header_bytes, refcounts
from mpconv.formats.qcow2.header import DIRTY, Header, parse
from mpconv.formats.qcow2.layout import Layout
from mpconv.model.errors import Fatal, ImageError
from mpconv.model.units import MiB
from mpconv.transports.base import Transport, cannot_open

_TOGETHER = 2 * MiB
_IN_FLIGHT = 4


class Steps:
    """What is done to a store in steps. `durable`: each is flushed before the next."""

    def __init__(self, store: Transport, *, durable: bool) -> None:
        self.store = store
        self._durable = durable

    async def _write(self, at: int, data: bytes) -> None:
        store, end = self.store, at + len(data)
        if store.fixed_size and end > store.writable:
            why = f"No space left: the image needs more than the {store.size} bytes there are ({end} so far)"
            why += ": mpconv measure -O qcow2 tells how many"
            raise Fatal(why, operation="writing", image=store.name, offset=store.size)
        await store.write(at, memoryview(data))

    async def _flush(self) -> None:
        if self._durable:
            await self.store.flush()


class _Tables(Struct, frozen=True):
    """Where they lie, in bytes of the file, one behind the other: L2 tables, L1 table, refcount blocks and table."""

    l2: int
    l1: int
    blocks: int
    refcounts: int


class Writer(Steps):
    """One image."""

    def __init__(self, store: Transport, layout: Layout, *, durable: bool = True) -> None:
        super().__init__(store, durable=durable)
        self.layout = layout
        self._header = header_bytes.header_of(layout.options, layout.size)
        self._tables: _Tables | None = None

    async def begin(self) -> None:
        """The header that says that the image is not complete."""
        await self._write(0, header_bytes.encode(self._header))
        await self._flush()

    async def is_finished(self) -> bool:
        """Whether the image that `begin` began in an earlier run was finished. ImageError when it is another one."""
        begun = header_bytes.encode(self._header)
        found = bytearray(min(len(begun), self.store.size))
        await self.store.read_into(0, memoryview(found))
        if found == begun:
            return False
        try:
            header = parse(bytes(found), self.store.size)
        except ImageError as error:
            raise cannot_open(self.store.name, f"it is not the image that was begun: {error}", ImageError) from error
        if _without_tables(header) != _without_tables(self._header):
            raise cannot_open(self.store.name, "it is not the image that was begun: it has another header", ImageError)
        return True

    async def finish(self) -> None:
        """Everything but the guest's bytes, which are written and flushed. What it writes, and where, depends on the
        layout alone: called again, when a connection was lost or in another run, it writes the same.
        """
        layout = self.layout
        tables = self._tables = self._tables or self._take_places()
        size = layout.cluster_size
        offsets = {number: tables.l2 + index * size for index, number in enumerate(sorted(layout.tables))}
        await self._write_all(tables.l2, (entries.packed(layout.tables[number]) for number in sorted(layout.tables)))
        l1 = entries.packed(layout.l1(offsets))
        await self._write_all(tables.l1, [l1.ljust(tables.blocks - tables.l1, b"\0")])
        await self._flush()
        await self._write_refcounts(tables)
        await self._flush()
        self._header = replace(
            self._header,
            l1_size=layout.l1_size,
            l1_offset=tables.l1,
            refcount_table_offset=tables.refcounts,
            refcount_table_clusters=(layout.end - tables.refcounts) // size,
            incompatible=self._header.incompatible & ~DIRTY,
        )
        await self._write(0, header_bytes.encode(self._header))
        await self._flush()

    @property
    def header(self) -> Header:
        """As it was written last."""
        return self._header

    def _take_places(self) -> _Tables:
        """Refcount blocks and their table count themselves too."""
        layout = self.layout
        size = layout.cluster_size
        l2 = layout.take_for_tables(len(layout.tables))
        l1 = layout.take_for_tables(-(-layout.l1_size * 8 // size))
        per_block = layout.options.refcounts_per_block
        blocks = tables = 0
        while True:
            total = (layout.end >> layout.cluster_bits) + blocks + tables
            wanted = -(-total // per_block)
            wanted_tables = max(1, -(-wanted * 8 // size))
            if (wanted, wanted_tables) == (blocks, tables):
                break
            blocks, tables = wanted, wanted_tables
        at = layout.take_for_tables(blocks + tables)
        return _Tables(l2, l1, at, at + blocks * size)

    async def _write_refcounts(self, tables: _Tables) -> None:
        """Blocks, then the table."""
        layout = self.layout
        order, per_block = layout.options.refcount_order, layout.options.refcounts_per_block
        parts = range(0, len(layout.references), per_block)
        await self._write_all(
            tables.blocks,
            (refcounts.packed(layout.references[first : first + per_block], order, per_block) for first in parts),
        )
        hosts = array("Q", range(tables.blocks, tables.refcounts, layout.cluster_size))
        await self._write_all(tables.refcounts, [entries.packed(hosts).ljust(layout.end - tables.refcounts, b"\0")])

    async def _write_all(self, at: int, parts: Iterable[bytes]) -> None:
        """Parts that follow each other, in large requests, a few at a time."""
        writing: list[asyncio.Task[None]] = []
        together: list[bytes] = []
        length = 0
        try:
            for part in parts:
                together.append(part)
                length += len(part)
                if length >= _TOGETHER:
                    writing.append(asyncio.create_task(self._write(at, b"".join(together))))
                    at += length
                    together, length = [], 0
                if len(writing) == _IN_FLIGHT:
                    await writing.pop(0)
            if length:
                writing.append(asyncio.create_task(self._write(at, b"".join(together))))
            while writing:
                await writing.pop(0)
        finally:
            await asyncio.gather(*writing, return_exceptions=True)


def _without_tables(header: Header) -> Header:
    return replace(
        header,
        l1_size=0,
        l1_offset=0,
        refcount_table_offset=0,
        refcount_table_clusters=0,
        incompatible=header.incompatible & ~DIRTY,
    )
