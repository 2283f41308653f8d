"""RawImage: whole sectors over a store of any size."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.formats.raw import RawImage, whole_sectors
from mpconv.model.errors import Fatal
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import SECTOR, align_up
from mpconv.transports import memory
from mpconv.transports.base import Access

DATA, ZERO = Kind.DATA, Kind.ZERO


class StatusMemory(memory.MemoryTransport):
    """A store whose block status is given; it answers with what lies in the range that is asked for."""

    extents: tuple[Extent, ...] = ()

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self.check_bounds("reading block status", offset, length)
        found = []
        for extent in self.extents:
            start, end = max(extent.start, offset), min(extent.end, offset + length)
            if start < end:
                found.append(Extent(start, end - start, extent.kind))
        return found


def image(content: bytes, *extents: Extent) -> RawImage:
    store = StatusMemory("memory:raw", bytearray(content), created=False)
    store.extents = extents or (Extent(0, len(content)),)
    return RawImage(store)


def read(raw: RawImage, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(b"\xee" * length))
    asyncio.run(raw.read_into(offset, buffer))
    return bytes(buffer)


def status(raw: RawImage, offset: int, length: int) -> list[Extent]:
    return asyncio.run(raw.block_status(offset, length))


def walk(raw: RawImage) -> list[Extent]:
    """Block status of the whole image, asked for as the coordinator does."""
    found: list[Extent] = []
    at = 0
    while at < raw.size:
        more = status(raw, at, raw.size - at)
        assert more[0].start == at and more[-1].end <= raw.size
        found += more
        at = more[-1].end
    return found


@pytest.mark.parametrize(("stored", "size"), [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024), (5000, 5120)])
def test_the_guest_disk_is_whole_sectors(stored, size):
    async def opened() -> RawImage:
        return RawImage(await memory.connect("memory:sized", Access.WRITE, create_size=stored))

    assert asyncio.run(opened()).size == size


@given(st.binary(max_size=2000), st.integers(0, 2100), st.integers(0, 2100))
def test_what_is_read_is_the_content_and_then_zeros(content, offset, length):
    raw = image(content, Extent(0, 1))
    offset = min(offset, raw.size)
    length = min(length, raw.size - offset)
    padded = content + bytes(raw.size - len(content))
    assert read(raw, offset, length) == padded[offset : offset + length]


def test_a_read_wholly_in_the_padding_does_not_touch_the_store():
    raw = image(b"x" * 513)
    asyncio.run(raw.transport.close())
    assert read(raw, 513, 511) == bytes(511)


def test_a_failed_read_comes_through():
    with pytest.raises(Fatal, match="error while reading at byte -1"):
        read(image(b"x" * 512), -1, 10)


def test_the_padding_is_data_with_the_last_sector():
    assert walk(image(b"x" * 1000)) == [Extent(0, 1024)]


def test_the_padding_of_a_zero_tail_is_zero_with_it():
    assert walk(image(bytes(1500), Extent(0, 1500, ZERO))) == [Extent(0, 1536, ZERO)]


def test_a_status_that_starts_in_the_padding_is_data():
    assert status(image(b"x" * 1000), 1000, 24) == [Extent(1000, 24)]


def test_a_boundary_inside_a_sector_gives_the_sector_to_the_data():
    raw = image(bytes(4096), Extent(0, 1000, ZERO), Extent(1000, 100), Extent(1100, 2996, ZERO))
    assert walk(raw) == [Extent(0, 512, ZERO), Extent(512, 1024), Extent(1536, 2560, ZERO)]


def test_zeros_inside_one_sector_are_data():
    raw = image(bytes(1024), Extent(0, 100), Extent(100, 200, ZERO), Extent(300, 724))
    assert all(extent.kind is DATA for extent in walk(raw))


runs = st.lists(st.tuples(st.integers(1, 1500), st.sampled_from([DATA, ZERO])), min_size=1, max_size=12)


def laid_out(parts: list[tuple[int, Kind]], start: int) -> list[Extent]:
    extents = []
    for length, kind in parts:
        extents.append(Extent(start, length, kind))
        start += length
    return extents


@given(runs, st.integers(0, 8), st.integers(0, 4))
def test_whole_sectors_keeps_every_data_byte_and_every_boundary_on_a_sector(parts, first, sectors_beyond):
    extents = laid_out(parts, first * SECTOR)
    end = align_up(extents[-1].end, SECTOR) + sectors_beyond * SECTOR
    found = whole_sectors(extents, end)
    at = first * SECTOR
    for extent in found:
        assert extent.start == at and extent.start % SECTOR == extent.length % SECTOR == 0
        at = extent.end
    assert first * SECTOR < at <= end
    for zeros in (extent for extent in found if extent.kind is not DATA):
        assert not any(zeros.overlaps(extent) for extent in extents if extent.kind is DATA)
    assert at >= max((extent.end for extent in extents if extent.kind is DATA), default=0)


@given(runs)
def test_the_walk_covers_the_image_and_calls_no_data_zeros(parts):
    extents = laid_out(parts, 0)
    raw = image(bytes(extents[-1].end), *extents)
    found = walk(raw)
    assert sum(extent.length for extent in found) == raw.size
    for zeros in (extent for extent in found if extent.kind is not DATA):
        assert not any(zeros.overlaps(extent) for extent in extents if extent.kind is DATA)


@given(runs)
def test_a_whole_sector_of_zeros_stays_zeros(parts):
    extents = laid_out(parts, 0)
    data = [extent for extent in extents if extent.kind is DATA]
    found = walk(image(bytes(extents[-1].end), *extents))
    for at in range(0, extents[-1].end - SECTOR + 1, SECTOR):
        sector = Extent(at, SECTOR)
        if not any(sector.overlaps(extent) for extent in data):
            assert not any(sector.overlaps(extent) for extent in found if extent.kind is DATA), f"sector at {at}"
