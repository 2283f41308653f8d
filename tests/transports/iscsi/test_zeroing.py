"""Zeros and limits of a LUN: tgt, and tgt behind a relay that makes it behave as other targets do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import struct
from collections.abc import Callable

import pytest

from mpconv.model.errors import Fatal
from mpconv.model.extent import Kind
from mpconv.model.units import GiB, KiB, MiB
from mpconv.transports.base import Access
from mpconv.transports.iscsi import store as iscsi_transport
from mpconv.transports.iscsi.commands import Refused
from tests.conftest import Lun
from tests.support.iscsi_relay import READ, UNKNOWN, UNMAP, WRITE, WRITE_SAME, WRITE_SAME10, Change, page, relayed


def refusing(*codes: int) -> Change:
    """A target that does not know these commands."""

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[0] in codes:
            cdb[0] = UNKNOWN

    return change


UNMAPPED = "blocks are unmapped (WRITE SAME)"
PROVED = "blocks are unmapped (UNMAP, proved by GET LBA STATUS)"
REPEATED = "the target repeats a block of zeros (WRITE SAME)"


def no_write_same_unmap(cdb: bytearray, data: bytearray) -> None:
    """A target whose page B2 says that only UNMAP unmaps."""
    page(0xB2, 5, b"\x84")(cdb, data)


def nothing_done(cdb: bytearray, data: bytearray) -> None:
    """A target that answers GOOD to WRITE SAME that unmaps, and unmaps somewhere else."""
    if cdb[0] == WRITE_SAME and cdb[1] & 0x08:
        cdb[2:10] = (4 * MiB // 512).to_bytes(8)


def blocks_of(cdb: bytes) -> tuple[int, int]:
    return struct.unpack_from(">QI", cdb, 2)


def unmapped(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">QI", data, 8)


def filled(lun: Lun, start: int = 0, end: int | None = None) -> bytes:
    """What lies in the backing file, asserted to be zeros between the two and old data elsewhere."""
    found = lun.backing.read_bytes()
    end = len(found) if end is None else end
    assert not found[start:end].strip(b"\0")
    assert not (found[:start] + found[end:]).strip(b"\xa5")
    return found


def room(lun: Lun) -> int:
    return lun.backing.stat().st_blocks * 512


@pytest.mark.parametrize("size", [8 * GiB, 9 * GiB + 4096])
def test_a_large_lun_is_zeroed_and_its_room_given_back(lun: Callable[..., Lun], size: int) -> None:
    made = lun(size)
    places = [0, GiB - 4096, 4 * GiB - 4096, 4 * GiB, 7 * GiB + 12288, size - 65536]
    with made.backing.open("r+b") as file:
        for at in places:
            file.seek(at)
            file.write(b"\xa5" * 65536)
    assert room(made) >= 4 * 65536

    async def run() -> None:
        store = await iscsi_transport.connect(made.url, Access.WRITE)
        assert await store.zero(0, size)
        assert store.zeroing == UNMAPPED
        for at in places:
            buffer = memoryview(bytearray(b"\xee" * 65536))
            await store.read_into(at, buffer)
            assert bytes(buffer) == bytes(65536), at
        await store.close()

    asyncio.run(run())
    assert room(made) == 0


def test_every_gib_is_sampled(lun: Callable[..., Lun]) -> None:
    async def run() -> None:
        async with relayed(lun(3 * GiB).url) as (store, relay):
            assert await store.zero(0, 3 * GiB)
            sent = sorted(blocks_of(cdb) for cdb, _ in relay.of(WRITE_SAME))
            assert sent == [(n * 262144, 262144) for n in range(24)], "128 MiB each"
            read = {blocks_of(cdb)[0] for cdb, _ in relay.of(READ)}
            assert read >= {0, 2097151, 2097152, 4194303, 4194304, 6291455}
            assert len(relay.of(READ)) <= 9

    asyncio.run(run())


@pytest.mark.parametrize(("offset", "length"), [(512, 4 * MiB - 1024), (1, 4 * MiB - 2), (MiB + 511, 514)])
@pytest.mark.parametrize("thin", [True, False])
def test_every_byte_of_odd_ranges_and_no_other(lun: Callable[..., Lun], offset: int, length: int, thin: bool) -> None:
    made = lun(4 * MiB, old_data=True, thin=thin)

    async def run() -> None:
        store = await iscsi_transport.connect(made.url, Access.WRITE)
        assert await store.zero(offset, length)
        assert store.zeroing == (UNMAPPED if thin else REPEATED)
        await store.close()

    asyncio.run(run())
    filled(made, offset, offset + length)


def test_unmap_that_is_not_there_is_asked_for_once(lun: Callable[..., Lun]) -> None:
    made = lun(8 * MiB, old_data=True)

    async def run() -> None:
        async with relayed(made.url, refusing(UNMAP), no_write_same_unmap) as (store, relay):
            assert store.zeroing == PROVED
            assert await store.zero(0, 4 * MiB)
            assert store.zeroing == REPEATED
            assert await store.zero(4 * MiB, 4 * MiB)
            assert len(relay.of(UNMAP)) == 1
            assert [cdb[1] for cdb, _ in relay.of(WRITE_SAME)] == [0, 0]
            assert not relay.of(WRITE)

    asyncio.run(run())
    filled(made)


def test_write_same_that_does_nothing_is_found_out(lun: Callable[..., Lun]) -> None:
    made = lun(8 * MiB, old_data=True)

    async def run() -> None:
        async with relayed(made.url, nothing_done) as (store, relay):
            assert await store.zero(0, 2 * MiB)
            assert store.zeroing == PROVED
            assert len(relay.of(WRITE_SAME)) == 1
            status = await store.block_status(0, 8 * MiB)
            assert [extent.kind for extent in status] == [Kind.DATA], "its word on zeros counts for nothing now"

    asyncio.run(run())
    assert not made.backing.read_bytes()[: 2 * MiB].strip(b"\0")


def test_write_same_that_cannot_unmap(lun: Callable[..., Lun]) -> None:
    made = lun(20 * MiB, old_data=True)

    async def run() -> None:
        def change(cdb: bytearray, data: bytearray) -> None:
            if cdb[0] == UNMAP or (cdb[0] == WRITE_SAME and cdb[1] & 0x08):
                cdb[0] = UNKNOWN

        async with relayed(made.url, change) as (store, relay):
            assert await store.zero(0, 20 * MiB)
            assert store.zeroing == REPEATED
            sent = [(cdb[1], *blocks_of(cdb), data) for cdb, data in relay.of(WRITE_SAME)]
            assert sent == [(8, 0, 40960, bytes(512)), (0, 0, 32768, bytes(512)), (0, 32768, 8192, bytes(512))]
            assert len(relay.of(UNMAP)) == 1

    asyncio.run(run())
    filled(made)


def test_nothing_cheap(lun: Callable[..., Lun]) -> None:
    made = lun(MiB, old_data=True)

    async def run() -> None:
        async with relayed(made.url, refusing(UNMAP, WRITE_SAME, WRITE_SAME10)) as (store, relay):
            for _ in range(3):
                assert not await store.zero(0, MiB)
            assert store.zeroing == "zeros are written"
            assert (len(relay.of(UNMAP)), len(relay.of(WRITE_SAME)), len(relay.of(WRITE_SAME10))) == (1, 2, 1)

    asyncio.run(run())
    filled(made, 0, 0)


def test_a_medium_error_is_not_a_missing_command(lun: Callable[..., Lun]) -> None:
    """tgt unmaps behind the end of a file that was cut, and then cannot read the samples."""
    made = lun(MiB, old_data=True)

    async def run() -> None:
        async with relayed(made.url) as (store, relay):
            os.truncate(made.backing, 0)
            with pytest.raises(Fatal, match=r"error while writing at byte .* unrecovered read error") as caught:
                await store.zero(4096, 8192)
            assert caught.value.offset is not None and 4096 <= caught.value.offset < 12288
            assert store.zeroing == UNMAPPED
            assert len(relay.of(WRITE_SAME)) == 1 and not relay.of(UNMAP)

    asyncio.run(run())


def test_limits_and_granules_of_unmap(lun: Callable[..., Lun]) -> None:
    """At most 1000 blocks a command; granules of 16 blocks from block 8 on."""
    made = lun(4 * MiB, old_data=True)

    async def run() -> None:
        def limited(cdb: bytearray, data: bytearray) -> None:
            no_write_same_unmap(cdb, data)
            page(0xB0, 20, struct.pack(">IIII", 1000, 1, 16, 0x80000008))(cdb, data)

        async with relayed(made.url, answer=limited) as (store, relay):
            assert await store.zero(512, 4 * MiB - 1024)
            sent = [unmapped(data) for _, data in relay.of(UNMAP)]
            assert sum(blocks for _, blocks in sent) == 8176 // 16 * 16
            assert sorted(sent)[0] == (8, 992)
            assert all(lba % 16 == 8 and blocks % 16 == 0 and blocks <= 992 for lba, blocks in sent)
            assert 1 < relay.together[UNMAP] <= 4
            written = sorted(blocks_of(cdb) for cdb, _ in relay.of(WRITE))
            assert written == [(1, 7), (8184, 7)]
            assert await store.zero(512, 4 * MiB - 1024)
            assert len(relay.of(WRITE)) == 2, "edges that are zero already are left alone"

    asyncio.run(run())
    filled(made, 512, 4 * MiB - 512)


@pytest.mark.parametrize("counts", [(0, 1, 1), (1000, 0, 1), (1000, 1, 1001)])
def test_no_unmap_where_its_limit_is_less_than_a_granule(lun: Callable[..., Lun], counts: tuple[int, int, int]) -> None:
    made = lun(MiB, old_data=True)

    async def run() -> None:
        async with relayed(made.url, answer=page(0xB0, 20, struct.pack(">III", *counts))) as (store, relay):
            assert await store.zero(0, MiB)
            assert not relay.of(UNMAP)

    asyncio.run(run())
    filled(made)


def test_the_limit_of_write_same(lun: Callable[..., Lun]) -> None:
    made = lun(MiB, old_data=True, thin=False)

    async def run() -> None:
        async with relayed(made.url, answer=page(0xB0, 36, struct.pack(">Q", 100))) as (store, relay):
            halves = await asyncio.gather(store.zero(0, 500 * KiB), store.zero(500 * KiB, 524 * KiB))
            assert halves == [True, True]
            sent = sorted(blocks_of(cdb) for cdb, _ in relay.of(WRITE_SAME))
            assert sent == [(lba, min(100, 2048 - lba)) for lba in range(0, 2048, 100)]
            assert 1 < relay.together[WRITE_SAME] <= 4

    asyncio.run(run())
    filled(made)


@pytest.mark.parametrize(("blocks", "bytes_"), [(0, 0), (8192, 4 * MiB), (1 << 20, 16 * MiB)])
def test_the_transfer_that_is_wished_for(lun: Callable[..., Lun], blocks: int, bytes_: int) -> None:
    made = lun(MiB)

    async def run() -> None:
        async with relayed(made.url, answer=page(0xB0, 12, struct.pack(">I", blocks))) as (store, _):
            assert store.limits.optimal_write == bytes_
            assert (store.limits.largest_read, store.limits.largest_write) == (MiB, MiB)
            assert await store.disk_size() is None

    asyncio.run(run())


def test_what_is_left_of_a_lun_whose_file_was_cut(lun: Callable[..., Lun]) -> None:
    """The error names the piece that failed first, in the order of the bytes; the rest is read on the same session."""
    made = lun(16 * MiB)
    whole = random.Random(1).randbytes(16 * MiB)
    made.backing.write_bytes(whole)

    async def run() -> None:
        store = await iscsi_transport.connect(made.url, Access.READ)
        os.truncate(made.backing, 8 * MiB + 512)
        for _ in range(20):
            with pytest.raises(Fatal, match=r"error while reading at byte 8388608 .*unrecovered read error") as caught:
                await store.read_into(4 * MiB, memoryview(bytearray(12 * MiB)))
            assert caught.value.offset == 8 * MiB
        lost = []
        for at in range(8 * MiB - 2048, 8 * MiB + 2048, 512):
            block = memoryview(bytearray(512))
            try:
                await store.read_into(at, block)
            except Fatal as error:
                assert error.offset == at
                lost.append(at)
            else:
                assert bytes(block) == whole[at : at + 512]
        assert lost == [8 * MiB + 512, 8 * MiB + 1024, 8 * MiB + 1536]
        await store.close()

    asyncio.run(run())


def test_an_error_is_no_garbage_that_refers_to_itself(lun: Callable[..., Lun]) -> None:
    """With a memoryview in it, CPython 3.11 would crash when it is collected."""
    made = lun(4 * MiB)

    async def run() -> None:
        store = await iscsi_transport.connect(made.url, Access.READ)
        os.truncate(made.backing, 0)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                with contextlib.suppress(Fatal):
                    await store.read_into(0, memoryview(bytearray(4 * MiB)))
            assert not [found for found in gc.get_objects() if isinstance(found, Refused)]
        finally:
            gc.enable()
        await store.close()

    asyncio.run(run())
