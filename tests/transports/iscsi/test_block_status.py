"""The map of a LUN: tgt, and tgt behind a relay that makes it answer as other targets do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest

from mpconv.model.extent import Kind
from mpconv.model.units import GiB, KiB, MiB
from mpconv.transports.iscsi.block_status import Impossible, runs
from mpconv.transports.iscsi.store import IscsiTransport
from tests.conftest import Lun
from tests.support.iscsi_relay import SERVICE_ACTION, UNMAP, WRITE_SAME, relayed


def answer(*descriptors: tuple[int, int, int], length: int | None = None) -> bytes:
    """GET LBA STATUS's, of (first block, blocks, status)."""
    body = b"".join(struct.pack(">QIB3x", *one) for one in descriptors)
    return struct.pack(">I4x", len(body) + 4 if length is None else length) + body


TERA = 1 << 32
"""Blocks that a count of 32 bits has no room for."""


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (answer((5, 10, 1)), [(5, 10, False)]),
        (answer((5, 10, 0), (15, 1, 2), (16, 84, 3)), [(5, 10, True), (15, 1, False), (16, 84, True)]),
        (answer((5, 10, 4), (15, 1, 0xF1)) + b"\xff" * 40, [(5, 10, True), (15, 1, False)]),
        (answer((5, 10, 1), (15, 85, 0))[:30], [(5, 10, False)]),
        (answer((5, 10, 1), (15 + TERA, 20, 0), (35 + TERA, 1, 1)), [(5, 10, False)]),
        (answer((5, 0, 1), (5 + TERA, 20, 0)), [(5, 0, False)]),
        (answer((5, 0, 1)), [(5, 0, False)]),
    ],
)
def test_answers_that_can_be_true(told: bytes, found: list[tuple[int, int, bool]]) -> None:
    assert runs(told, 5, 100 if max(sum(run[:2]) for run in found) > 15 else 2 * TERA) == found


@pytest.mark.parametrize(
    "told",
    [
        answer(),
        answer(length=0),
        answer((5, 10, 1), length=27),
        answer((4, 10, 1)),
        answer((6, 10, 1)),
        answer((5 + TERA, 10, 1)),
        answer((5, 96, 1)),
        answer((5, 10, 1), (15, 86, 0)),
        answer((5, 10, 1), (15, 0xFFFFFFFF, 0)),
        answer((5, 10, 1), (14, 10, 0)),
        answer((5, 10, 1), (5, 10, 1)),
        answer((5, 10, 1), (16, 10, 0)),
        answer((5, 10, 1), (0, 5, 0)),
        answer((5, 10, 1), (15, 0, 0)),
        answer((5, 0, 1)),
        answer((5, 10, 1), (15, 0, 0), (15, 5, 1)),
        answer((5, 10, 5)),
        answer((5, 10, 1), (15, 10, 0x0F)),
        answer((5, 10, 1), length=36) + bytes(16),
    ],
)
def test_answers_that_cannot_be_true(told: bytes) -> None:
    with pytest.raises(Impossible):
        runs(told, 5, 100)


async def walk(store: IscsiTransport) -> list[tuple[int, int, Kind]]:
    """The whole map, neighbours of one kind as they came."""
    found, at = [], 0
    while at < store.size:
        for extent in await store.block_status(at, store.size - at):
            assert extent.start == at
            found.append((extent.start, extent.length, extent.kind))
            at = extent.end
    return found


def test_a_map_of_many_extents_in_few_calls(lun: Callable[..., Lun]) -> None:
    made = lun(5000 * 128 * KiB)
    with made.backing.open("r+b") as file:
        for at in range(0, 5000 * 128 * KiB, 128 * KiB):
            file.seek(at)
            file.write(b"\xa5" * 4096)

    async def run() -> None:
        async with relayed(made.url) as (store, relay):
            before = len(relay.of(SERVICE_ACTION))
            found = await walk(store)
            assert found[:2] == [(0, 4096, Kind.DATA), (4096, 124 * KiB, Kind.ZERO)]
            assert len(found) == 10_000
            assert len(relay.of(SERVICE_ACTION)) - before == 3

    asyncio.run(run())


def test_a_hole_of_more_blocks_than_32_bits_count(lun: Callable[..., Lun]) -> None:
    """tgt tells of no blocks then; all but a few of them are known to be zeros all the same."""
    tera = 1024 * GiB
    made = lun(8 * tera)
    with made.backing.open("r+b") as file:
        file.seek(5 * tera)
        file.write(b"\xa5" * 4096)

    async def run() -> None:
        async with relayed(made.url) as (store, relay):
            before = len(relay.of(SERVICE_ACTION))
            found = await walk(store)
            assert len(relay.of(SERVICE_ACTION)) - before <= 12
            data = [(start, length) for start, length, kind in found if kind is Kind.DATA]
            assert (5 * tera, 4096) in data
            assert sum(length for _, length in data) <= 4096 + 8 * 512

    asyncio.run(run())


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (0xF0, Kind.DATA),
        (0xF1, Kind.ZERO),
        (0, Kind.DATA),
        (1, Kind.ZERO),
        (2, Kind.ZERO),
        (3, Kind.DATA),
        (4, Kind.DATA),
    ],
)
def test_states_of_blocks(lun: Callable[..., Lun], state: int, kind: Kind) -> None:
    made = lun(MiB)

    async def run() -> None:
        def change(cdb: bytearray, data: bytearray) -> None:
            if cdb[:2] == b"\x9e\x12":
                data[8 + 12] = state

        async with relayed(made.url, answer=change) as (store, _):
            assert await walk(store) == [(0, MiB, kind)]

    asyncio.run(run())


@pytest.mark.parametrize(("flags", "kind"), [(0xC0, Kind.ZERO), (0x80, Kind.DATA), (0x40, Kind.DATA)])
def test_no_zeros_without_the_lun_s_promise(lun: Callable[..., Lun], flags: int, kind: Kind) -> None:
    """LBPME and LBPRZ of READ CAPACITY(16), both."""
    made = lun(MiB)

    async def run() -> None:
        def change(cdb: bytearray, data: bytearray) -> None:
            if cdb[:2] == b"\x9e\x10":
                data[14] = flags

        async with relayed(made.url, answer=change) as (store, relay):
            assert await walk(store) == [(0, MiB, kind)]
            assert await store.zero(0, MiB)
            assert [cdb[1] for cdb, _ in relay.of(WRITE_SAME)] == [0x08 if kind is Kind.ZERO else 0]
            assert not relay.of(UNMAP)

    asyncio.run(run())


def test_a_status_that_is_refused_is_asked_for_once(lun: Callable[..., Lun]) -> None:
    made = lun(MiB)

    async def run() -> None:
        def change(cdb: bytearray, data: bytearray) -> None:
            if cdb[:2] == b"\x9e\x12":
                cdb[1] = 0x1F

        async with relayed(made.url, change) as (store, relay):
            for _ in range(3):
                assert await walk(store) == [(0, MiB, Kind.DATA)]
            assert sum(cdb[1] == 0x12 for cdb, _ in relay.of(SERVICE_ACTION)) == 1

    asyncio.run(run())
