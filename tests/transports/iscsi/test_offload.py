"""EXTENDED COPY. tgt does not know it: the relay lends it the bit of INQUIRY, a name, and an answer."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mpconv.model.errors import Fatal
from mpconv.model.units import MiB
from mpconv.transports.base import Access
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi import store as iscsi_transport
from tests.conftest import Lun
from tests.support.iscsi_relay import EXTENDED_COPY, INQUIRY, Change, Listener, as_it_is, relayed

SIZE = 40 * MiB
TEST_UNIT_READY = 0x00


def two(lun: Callable[..., Lun]) -> tuple[Lun, Lun, bytes]:
    """A source, its bytes, and a target full of something else."""
    source, target = lun(SIZE), lun(SIZE, old_data=True)
    whole = random.Random(1).randbytes(SIZE)
    source.backing.write_bytes(whole)
    return source, target, whole


def name(number: int, naa: int = 6) -> bytes:
    return bytes([naa << 4, 0x01, 0x40, *bytes(12), number])


def able(number: int, naa: int = 6) -> Change:
    """A target that offers third party copies, with one name on its page of identification."""

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[0] == INQUIRY and not cdb[1]:
            data[5] |= 0x08
        elif cdb[:3] == bytes([INQUIRY, 1, 0x83]):
            page = struct.pack(">BBHBBBB16s", 0, 0x83, 20, 1, 3, 0, 16, name(number, naa))
            data[: len(page)] = page

    return change


def good(cdb: bytearray, data: bytearray) -> None:
    """A target that answers GOOD to EXTENDED COPY and does nothing."""
    if cdb[0] == EXTENDED_COPY:
        cdb[0] = TEST_UNIT_READY


def copying(source: Path, target: Path) -> Change:
    """A target that does what a segment says, between files."""

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[0] == EXTENDED_COPY:
            blocks, source_lba, lba = struct.unpack_from(">HQQ", data, 16 + 64 + 10)
            with source.open("rb") as reader, target.open("r+b") as writer:
                reader.seek(source_lba * 512)
                writer.seek(lba * 512)
                writer.write(reader.read(blocks * 512))
            good(cdb, data)

    return change


async def copied(
    source: Lun, target: Lun, *, command: Change = as_it_is, names: tuple[Change, Change] = (able(1), able(2))
) -> tuple[bool, bool, Listener]:
    """What two copies of the same 36 MiB came to."""
    async with (
        relayed(source.url, answer=names[0]) as (reader, _),
        relayed(target.url, command, names[1]) as (writer, relay),
    ):
        first = await writer.copy_from(reader, 2 * MiB, MiB, 36 * MiB)
        return first, await writer.copy_from(reader, 2 * MiB, MiB, 36 * MiB), relay


def test_tgt_does_not_offer_it(lun: Callable[..., Lun]) -> None:
    source, target, _ = two(lun)

    async def run() -> None:
        first, second, relay = await copied(source, target, names=(as_it_is, as_it_is))
        assert (first, second) == (False, False)
        assert not relay.of(EXTENDED_COPY)

    asyncio.run(run())
    assert not target.backing.read_bytes().strip(b"\xa5")


def test_a_refusal_is_remembered_and_changes_nothing(lun: Callable[..., Lun]) -> None:
    source, target, _ = two(lun)

    async def run() -> None:
        first, second, relay = await copied(source, target)
        assert (first, second) == (False, False)
        assert len(relay.of(EXTENDED_COPY)) == 1

    asyncio.run(run())
    assert not target.backing.read_bytes().strip(b"\xa5")


@pytest.mark.parametrize("names", [(able(1), able(1)), (able(1, 3), able(2)), (able(1), able(2, 3))])
def test_names_that_are_not_unique_in_the_world(lun: Callable[..., Lun], names: tuple[Change, Change]) -> None:
    source, target, _ = two(lun)

    async def run() -> None:
        first, second, relay = await copied(source, target, names=names)
        assert (first, second) == (False, False)
        assert not relay.of(EXTENDED_COPY)

    asyncio.run(run())


def test_a_copy_that_was_none_is_found_out(lun: Callable[..., Lun]) -> None:
    source, target, _ = two(lun)

    async def run() -> None:
        first, second, relay = await copied(source, target, command=good)
        assert (first, second) == (False, False)
        assert len(relay.of(EXTENDED_COPY)) == 3

    asyncio.run(run())


def test_what_a_target_that_can_is_told(lun: Callable[..., Lun]) -> None:
    source, target, whole = two(lun)

    async def run() -> None:
        first, second, relay = await copied(source, target, command=copying(source.backing, target.backing))
        assert (first, second) == (True, True)
        sent = relay.of(EXTENDED_COPY)
        assert len(sent) == 6
        assert [struct.unpack_from(">HQQ", data, 90) for _, data in sent[:3]] == [
            (32768, 4096, 2048),
            (32768, 4096 + 32768, 2048 + 32768),
            (8192, 4096 + 65536, 2048 + 65536),
        ]
        assert all(cdb == scsi.extended_copy(108) and len(data) == 108 for cdb, data in sent)
        assert [(data[16 + 8 : 40], data[48 + 8 : 72]) for _, data in sent[:1]] == [(name(1), name(2))]
        assert len({data[0] for _, data in sent}) == 6, "commands under way together need different identifiers"

    asyncio.run(run())
    rest = MiB, 3 * MiB
    expected = b"\xa5" * rest[0] + whole[2 * MiB : 38 * MiB] + b"\xa5" * rest[1]
    assert target.backing.read_bytes() == expected


def test_what_no_target_could_do(lun: Callable[..., Lun]) -> None:
    source, large = lun(MiB), lun(MiB, block_size=4096)

    async def run() -> None:
        async with (
            relayed(source.url, answer=able(1)) as (reader, _),
            relayed(large.url, answer=able(2)) as (writer, relay),
            relayed(lun(MiB).url, answer=able(3)) as (other, other_relay),
        ):
            assert not await writer.copy_from(reader, 0, 0, 4096)
            assert not await other.copy_from(reader, 1, 0, 512)
            assert not await other.copy_from(reader, 0, 0, 700)
            assert not relay.of(EXTENDED_COPY) and not other_relay.of(EXTENDED_COPY)
            for source_offset, offset in ((MiB, 0), (0, MiB)):
                with pytest.raises(Fatal, match="beyond the end"):
                    await other.copy_from(reader, source_offset, offset, 512)

    asyncio.run(run())


def test_two_real_luns(lun: Callable[..., Lun]) -> None:
    source, target, _ = two(lun)

    async def run() -> None:
        reader = await iscsi_transport.connect(source.url, Access.READ)
        writer = await iscsi_transport.connect(target.url, Access.WRITE)
        assert not await writer.copy_from(reader, 0, 0, SIZE)
        await reader.close()
        await writer.close()

    asyncio.run(run())
    assert not target.backing.read_bytes().strip(b"\xa5")
