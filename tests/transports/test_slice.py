"""A part of a store as a store of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from mpconv import transports
from mpconv.formats.raw import RawImage
from mpconv.model.errors import Fatal
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.transports.base import Access, Transport

KiB = 1024


def opened(path: object, **part: int) -> Transport:
    return asyncio.run(transports.open_place(Place(url=str(path), **part), Access.WRITE))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(range(256)) * 64)
    return tmp_path / "a.raw"


@pytest.mark.parametrize(
    ("offset", "sectors"), [(0, 129), (1, 129), (511, 129), (512, 128), (65536, 1), (66047, 1), (66048, 0)]
)
def test_a_raw_image_off_a_sector_has_as_many_sectors_as_qemu_img_sees(tmp_path, offset, sectors):
    path = tmp_path / "odd.raw"
    path.write_bytes(b"\x55" * 65537)
    seen = subprocess.run(
        ["qemu-img", "info", "--output=json", "--image-opts", f"driver=raw,offset={offset},file.filename={path}"],
        capture_output=True,
        check=True,
    )
    assert json.loads(seen.stdout)["virtual-size"] == sectors * 512
    part = opened(path, offset=offset)
    assert RawImage(part).size == sectors * 512
    asyncio.run(part.close())


def test_nothing_outside_is_read_written_zeroed_or_told_of(path):
    before = path.read_bytes()

    async def run() -> None:
        part = await transports.open_place(Place(url=str(path), offset=4 * KiB, size=8 * KiB), Access.WRITE)
        assert part.size == 8 * KiB
        buffer = bytearray(8 * KiB)
        await part.read_into(0, memoryview(buffer))
        assert buffer == before[4 * KiB : 12 * KiB]
        await part.write(0, memoryview(b"\xee" * 512))
        assert await part.zero(4 * KiB, 4 * KiB)
        await part.flush()
        assert await part.block_status(0, 8 * KiB) == [Extent(0, 4 * KiB), Extent(4 * KiB, 4 * KiB, Kind.ZERO)]
        for offset, length in ((8 * KiB, 1), (-1, 1), (8 * KiB - 1, 2)):
            for request in (part.read_into, part.write):
                with pytest.raises(Fatal, match="beyond the end"):
                    await request(offset, memoryview(bytearray(length)))
            with pytest.raises(Fatal, match="beyond the end"):
                await part.zero(offset, length)
        await part.close()

    asyncio.run(run())
    kept = before[: 4 * KiB] + b"\xee" * 512 + before[4 * KiB + 512 : 8 * KiB] + bytes(4 * KiB) + before[12 * KiB :]
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    ("part", "size"), [({"offset": 1000}, 15384), ({"offset": 16 * KiB}, 0), ({"offset": 1, "size": 512}, 512)]
)
def test_sizes(path, part, size):
    assert opened(path, **part).size == size


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"offset": 16 * KiB + 1}, "Offset (16385) cannot be greater than size of the containing file (16384)"),
        ({"offset": 512, "size": 16 * KiB}, "The sum of offset (512) and size (16384) has to be smaller or equal"),
        ({"size": 100}, "Specified size is not multiple of 512"),
    ],
)
def test_a_part_that_is_not_there(path, part, words):
    with pytest.raises(Fatal) as caught:
        opened(path, **part)
    assert words in str(caught.value)
