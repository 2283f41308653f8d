"""A qcow2 image is read from end to end of its tables, so that its books can be compared with what they are kept of.

Tables are read several at once and dropped again: memory is a byte or two for each host cluster, and a few MiB. Nothing
besides the image's own file is opened.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from mpconv.formats.qcow2 import bitmaps, entries
from mpconv.formats.qcow2.check.accounts import REFCOUNT_RESERVED, Accounts, Report, Uses
from mpconv.formats.qcow2.check.owners import Books
from mpconv.formats.qcow2.check.target_accounts import Damage, TargetAccounts
from mpconv.formats.qcow2.image import Metadata, read_bitmaps, read_metadata
from mpconv.model.errors import ImageError, StatusWithdrawn
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import GiB, MiB
from mpconv.transports import is_local
from mpconv.transports.base import Transport, cannot_open

_AT_ONCE = 4 * MiB
_MOST_AT_ONCE = 32
_SLICE = 64 * 1024
"""Entries of an L1 table that are looked at together."""
_TABLES_KNOWN = 1 << 18
"""L2 tables that are remembered so that they are looked at once, whoever refers to them."""
_LARGEST_L1S = GiB
_MOST_ALIKE = 4096
"""Refcount blocks that the table has more than once: without a limit a small file fills memory."""
_MOST_UNCOUNTED = 1 << 16
"""Refcount blocks beyond what all blocks that are stored can count: far apart, each fills a page of memory."""
_LARGEST_OFFSET = 1 << 63


class _L1(Struct, frozen=True):
    """An L1 table of `size` entries, which `times` states have."""

    offset: int
    size: int
    times: int
    active: bool


async def check(store: Transport, tell: Callable[[str], None]) -> Report:
    """Check the image in `store`; every error is told in one line. ImageError when it cannot be checked."""
    metadata = await read_metadata(store)
    found = await read_bitmaps(store, metadata.header)
    accounts = Accounts(metadata.header, store.size, tell)
    await _Checking(store, metadata, found, accounts).run()
    return accounts.compare()


async def books(store: Transport, metadata: Metadata) -> Books:
    """Of an image that is written into. ImageError, with its name, when it is damaged so that this would lose data."""
    accounts = TargetAccounts(metadata.header, store.size)
    try:
        await _Checking(store, metadata, [], accounts).run()
        return accounts.books(-(-store.size // metadata.header.cluster_size) if store.growing else 0)
    except Damage as error:
        found = error.why.removeprefix("ERROR").strip()
        why = f"it is damaged ({found}), so nothing is written into it: repair it with 'qemu-img check -r all' first"
        raise cannot_open(store.name, why, ImageError) from None
    except ImageError as error:
        raise cannot_open(store.name, error.why, ImageError) from None


class _Checking:
    def __init__(self, store: Transport, metadata: Metadata, found: list[bitmaps.Bitmap], accounts: Accounts) -> None:
        self._store = store
        self._header = metadata.header
        self._snapshots = metadata.snapshots
        self._bitmaps = found
        self._accounts = accounts
        self._tables: dict[int, Uses] = {}
        self._local = is_local(store.name)
        self._status = Extent(0, 1)

    async def run(self) -> None:
        """Everything is counted."""
        header, accounts = self._header, self._accounts
        length = header.refcount_table_clusters << header.cluster_bits
        refcount_table = await self._table(header.refcount_table_offset, length)
        await self._load_refcounts(refcount_table)
        accounts.refer(0, header.cluster_size)
        await self._count_l1s()
        accounts.refer(header.snapshots_offset, sum(snapshot.stored for snapshot in self._snapshots))
        accounts.refer(header.refcount_table_offset, length)
        await self._count_bitmaps()
        accounts.refcount_table(refcount_table)

    async def _read(self, offset: int, length: int) -> bytes:
        """What lies beyond the end of the file is zeros."""
        buffer = bytearray(length)
        there = max(0, min(length, self._store.size - offset))
        if there:
            await self._store.read_into(offset, memoryview(buffer)[:there])
        return bytes(buffer)

    async def _table(self, offset: int, length: int) -> array[int]:
        return entries.table(await self._read(offset, length))

    async def _clusters(self, offsets: list[int]) -> list[bytes]:
        reads = (self._read(offset, self._header.cluster_size) for offset in offsets)
        return await asyncio.gather(*reads)

    def _batches(self, offsets: Iterable[int]) -> Iterator[list[int]]:
        most = max(1, min(_MOST_AT_ONCE, _AT_ONCE >> self._header.cluster_bits))
        batch = []
        for offset in offsets:
            batch.append(offset)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _load_refcounts(self, table: array[int]) -> None:
        if len(table) - table.count(0) - len(set(table)) > _MOST_ALIKE:
            raise ImageError("Check failed: the refcount table has the same blocks again and again")
        stored, per_block = self._accounts.stored, self._accounts.per_block
        blocks: list[tuple[int, int]] = []
        most = max(1, min(_MOST_AT_ONCE, _AT_ONCE >> self._header.cluster_bits))
        size, largest = self._header.cluster_size, _LARGEST_OFFSET - self._header.cluster_size
        in_use = [index for index in range(min(len(table), -(-stored.clusters // per_block))) if table[index]]
        # By their places, so that the store is asked once for each of its holes.
        in_use.sort(key=table.__getitem__)
        hole = loaded = 0
        for index in in_use:
            offset = table[index] & ~REFCOUNT_RESERVED
            if offset % size or offset > largest:
                self._accounts.unreadable_block(index)
            elif offset + size > hole and 0 < offset < self._store.size:
                if await self._is_hole(offset):
                    hole = self._status.end
                    continue
                blocks.append((index, offset))
                loaded += 1
                if len(blocks) == most:
                    await self._load(blocks)
                    blocks = []
        if len(in_use) - loaded * per_block > _MOST_UNCOUNTED:
            raise ImageError("Check failed: nearly all refcount blocks lie in holes: nothing counts them")
        await self._load(blocks)

    async def _load(self, blocks: list[tuple[int, int]]) -> None:
        offsets = list({offset for _, offset in blocks})
        found = dict(zip(offsets, await self._clusters(offsets), strict=True))
        for index, offset in blocks:
            first = index * self._accounts.per_block
            self._accounts.stored.load(first, found[offset], self._header.refcount_order)

    async def _count_l1s(self) -> None:
        header, accounts = self._header, self._accounts
        usable = [snapshot for index, snapshot in enumerate(self._snapshots) if accounts.snapshot(index, snapshot)]
        alike = Counter((snapshot.l1_offset, snapshot.l1_size) for snapshot in usable)
        tables = [_L1(header.l1_offset, header.l1_size, 1, active=True)]
        tables += [_L1(offset, size, times, active=False) for (offset, size), times in alike.items()]
        if sum(table.size * 8 for table in tables) > _LARGEST_L1S:
            raise ImageError("Check failed: the L1 tables of the snapshots are too large")
        for table in tables:
            accounts.refer(table.offset, table.size * 8, table.times)
        for first in range(0, max(table.size for table in tables), _SLICE):
            for table in tables:
                if first < table.size:
                    await self._count_slice(table, first, min(_SLICE, table.size - first))
        await self._count_l2s()

    async def _count_slice(self, l1: _L1, first: int, length: int) -> None:
        """States share L2 tables: those of all states are gathered before they are looked at."""
        table = await self._table(l1.offset + first * 8, length * 8)
        where = {entry: length - number for number, entry in enumerate(reversed(table), 1)} if l1.active else {}
        for entry, number in Counter(table).items():
            if not entry:
                continue
            times = number * l1.times
            offset = self._accounts.l1_entry(entry, times, first + where[entry] if l1.active else None)
            if offset is None or offset >= self._store.size:
                continue
            uses = self._tables.setdefault(offset, Uses())
            uses.all += times
            uses.active += number if l1.active else 0
        if len(self._tables) > _TABLES_KNOWN:
            await self._count_l2s()

    async def _count_l2s(self) -> None:
        tables, self._tables = self._tables, {}
        nothing = bytes(self._header.cluster_size)
        for offsets in self._batches([offset for offset in sorted(tables) if not await self._is_hole(offset)]):
            for offset, found in zip(offsets, await self._clusters(offsets), strict=True):
                if found != nothing:
                    self._accounts.l2_table(entries.table(found), tables[offset], in_place=offset > 0)

    async def _is_hole(self, offset: int) -> bool:
        """Whether nothing is stored of the cluster at `offset`. Only a local file's word is taken for that."""
        if not self._local:
            return False
        if not self._status.start <= offset < self._status.end:
            try:
                self._status = (await self._store.block_status(offset, self._store.size - offset))[0]
            except StatusWithdrawn:
                self._local = False
                return False
        return self._status.kind is Kind.ZERO and offset + self._header.cluster_size <= self._status.end

    async def _count_bitmaps(self) -> None:
        header, accounts = self._header, self._accounts
        if header.bitmaps is None:
            return
        _, size, offset = header.bitmaps
        accounts.refer(offset, size)
        for bitmap in self._bitmaps:
            length = bitmap.table_size * 8
            accounts.refer(bitmap.table_offset, length)
            for entry, times in Counter(await self._table(bitmap.table_offset, length)).items():
                data = bitmaps.data_offset(entry, header.cluster_size)
                if data:
                    accounts.refer(data, header.cluster_size, times)
