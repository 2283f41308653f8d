"""Local files: room, zeros, holes, and copies where the bytes lie."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.api.copying import convert
from mpconv.model.errors import Fatal, Retryable, StatusWithdrawn
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import KiB, MiB, align_up
from mpconv.transports.base import Access, Opening, Transport
from tests.support.allocation import allocation

TiB = 1 << 40


async def opened(path: Path, access: Access = Access.WRITE) -> Transport:
    return await transports.connect(str(path), access)


def content(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("size", [0, 1, 512, 4097, 5 * MiB + 513, 40 * MiB])
@pytest.mark.parametrize("how", ["off", "falloc", "full"])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_preallocated_as_by_qemu_img(tmp_path: Path, how: str, size: int, direct: bool) -> None:
    theirs, ours = tmp_path / "theirs.raw", tmp_path / "ours.raw"
    ours.write_bytes(b"\xa5" * MiB)
    size_theirs = align_up(size, 512)  # qemu-img makes whole sectors
    command = ["qemu-img", "create", "-q", "-f", "raw", "-o", f"preallocation={how}", str(theirs), str(size_theirs)]
    subprocess.run(command, check=True)

    async def run() -> None:
        opening = Opening(direct=direct, locked=True, preallocation=how)
        store = await transports.connect(str(ours), Access.WRITE, create_size=size, opening=opening)
        assert store.zero_initialised
        assert store.size == size
        assert await store.disk_size() == ours.stat().st_blocks * 512
        await store.close()

    asyncio.run(run())
    assert ours.stat().st_size == size
    if size == size_theirs:
        assert allocation(ours) == allocation(theirs)
    assert ours.read_bytes() == bytes(size)
    assert ours.stat().st_blocks == theirs.stat().st_blocks
    assert ours.stat().st_blocks * 512 == align_up(min(size, 4096) if how == "off" else size, 4096)


@pytest.mark.parametrize("discarded", [False, True])
def test_it_is_closed_where_no_thread_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, discarded: bool
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        store = await transports.connect(str(tmp_path / "a.raw"), Access.WRITE, create_size=MiB)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        if discarded:
            assert await store.discard()
        await store.close()
        await store.close()
        monkeypatch.undo()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "a.raw").exists() is not discarded


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_was_made_goes_away_when_a_signal_comes_before_anything_is_in_it(
    tmp_path: Path, there: bool
) -> None:
    path = tmp_path / "a.raw"
    if there:
        path.write_bytes(b"old")

    async def cancelled(_: Transport) -> None:
        raise asyncio.CancelledError

    async def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            opening = Opening(locked=True, judge=cancelled)
            await transports.connect(str(path), Access.WRITE, create_size=MiB, opening=opening)

    asyncio.run(run())
    assert path.exists() is there
    assert not there or path.read_bytes() == b"old"


def test_the_disk_size_is_qemu_imgs(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"

    async def run() -> None:
        store = await transports.connect(str(path), Access.WRITE, create_size=TiB)
        for offset in (0, 5 * MiB + 1, TiB - 4096):
            await store.write(offset, memoryview(bytearray(b"x" * 4096)))
        await store.flush()
        info = subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True).stdout
        assert f'"actual-size": {await store.disk_size()},'.encode() in info
        assert await store.disk_size() == 4 * 4096
        await store.close()
        with pytest.raises(Retryable):
            await store.disk_size()

    asyncio.run(run())


def test_zeros_give_the_room_back(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(content(5 * MiB))

    async def run() -> None:
        store = await opened(path)
        assert await store.zero(MiB + 1, 3 * MiB)
        assert store.zeroing == "holes are punched"
        await store.close()

    asyncio.run(run())
    data = content(5 * MiB)
    assert path.read_bytes() == data[: MiB + 1] + bytes(3 * MiB) + data[4 * MiB + 1 :]
    assert path.stat().st_blocks * 512 == 2 * MiB + 4096, "all whole pages are holes"


def test_zeros_to_the_end_keep_the_size(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(content(MiB + 77))

    async def run() -> None:
        store = await opened(path)
        assert await store.zero(0, MiB + 77)
        await store.close()

    asyncio.run(run())
    assert path.read_bytes() == bytes(MiB + 77)
    assert path.stat().st_blocks * 512 == 4096, "the last block, which is no whole one"


def test_a_failure_to_zero_is_an_error_and_not_forgotten_means(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(content(MiB))

    async def run() -> None:
        store = await opened(path, Access.READ)
        with pytest.raises(Fatal, match=r"error while writing at byte 4096 of .*: Bad file descriptor"):
            await store.zero(4096, 4096)
        assert store.zeroing == "holes are punched"
        await store.close()

    asyncio.run(run())


def test_8_tib_with_four_extents_take_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    places = [0, 3 * MiB, 4 * TiB + 64 * KiB, 8 * TiB - 4096]

    async def run() -> None:
        store = await transports.connect(str(path), Access.WRITE, create_size=8 * TiB)
        for offset in places:
            await store.write(offset, memoryview(bytearray(b"x" * 4096)))
        began = time.perf_counter()
        extents = await store.block_status(0, store.size)
        assert time.perf_counter() - began < 0.2
        assert [extent for extent in extents if extent.kind is Kind.DATA] == [Extent(at, 4096) for at in places]
        assert extents[-1].end == 8 * TiB
        assert len(extents) == 7
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("whence", "answer"), [(os.SEEK_DATA, -4096), (os.SEEK_DATA, -1), (os.SEEK_HOLE, 0), (os.SEEK_HOLE, -8192)]
)
def test_holes_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whence: int, answer: int) -> None:
    """File systems in user space answer what they like: then everything is read, and nothing waits for an end."""
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    with source.open("wb") as file:
        file.truncate(4 * MiB)
        file.seek(MiB)
        file.write(content(MiB))
    seek = os.lseek

    def lying(fd: int, offset: int, how: int) -> int:
        return max(0, offset + answer) if how == whence and offset else seek(fd, offset, how)

    async def run() -> None:
        store = await opened(source, Access.READ)
        monkeypatch.setattr(os, "lseek", lying)
        with pytest.raises(StatusWithdrawn, match="what the file system says of its holes cannot be true"):
            await store.block_status(4096, 4 * MiB - 4096)
        assert await store.block_status(0, 4 * MiB) == [Extent(0, 4 * MiB)]
        await store.close()

    asyncio.run(run())
    asyncio.run(convert(str(source), str(target)))
    assert target.read_bytes() == source.read_bytes()


def test_status_of_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(content(MiB))

    async def run() -> None:
        store = await opened(path, Access.READ)
        os.truncate(path, 8192)
        assert await store.block_status(0, 8192) == [Extent(0, 8192)]
        with pytest.raises(Fatal, match="has shrunk") as caught:
            await store.block_status(0, MiB)
        assert caught.value.offset == 8192
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("data", [b"", b"\1" * 212], ids=["zeros", "data"])
def test_a_write_into_the_last_sector_s_padding_makes_it_longer_and_zeros_do_not(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(b"\xa5" * 1000)

    async def run() -> None:
        store = await transports.connect(str(path), Access.WRITE)
        assert (store.size, store.writable) == (1000, 1024)
        with pytest.raises(Fatal, match="beyond the end"):
            await store.write(1000, memoryview(bytearray(25)))
        if data:
            await store.write(812, memoryview(bytearray(data)))
        else:
            await store.zero(512, 512)
        await store.close()

    asyncio.run(run())
    assert path.read_bytes() == (b"\xa5" * 812 + data if data else b"\xa5" * 512 + bytes(488))


RANGES = [(0, 0, 0), (0, 0, 3 * MiB), (0, 4096, 8192), (1, 2, 5000), (MiB + 7, 513, MiB), (3 * MiB - 1, 0, 1)]


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_copies_where_the_bytes_lie(tmp_path: Path, direct: bool) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(content(3 * MiB))
    opening = Opening(direct=direct)

    async def run() -> None:
        reader = await transports.connect(str(source), Access.READ, opening=opening)
        writer = await transports.connect(str(target), Access.WRITE, create_size=4 * MiB, opening=opening)
        model = bytearray(4 * MiB)
        for source_offset, offset, length in RANGES:
            assert await writer.copy_from(reader, source_offset, offset, length)
            model[offset : offset + length] = content(3 * MiB)[source_offset : source_offset + length]
            assert target.read_bytes() == model
        await asyncio.gather(
            *(writer.copy_from(reader, at, 3 * MiB - at - 65_536, 65_536) for at in range(0, 3 * MiB, 65_536))
        )
        for at in range(0, 3 * MiB, 65_536):
            model[3 * MiB - at - 65_536 : 3 * MiB - at] = content(3 * MiB)[at : at + 65_536]
        assert target.read_bytes() == model
        await reader.close()
        with pytest.raises(Retryable, match="closed"):
            await writer.copy_from(reader, 0, 0, 1)
        await writer.close()
        with pytest.raises(Retryable, match="closed"):
            await writer.copy_from(writer, 0, 0, 1)

    asyncio.run(run())


def test_a_source_that_is_closed_during_a_copy(tmp_path: Path) -> None:
    """Its descriptor's number goes to another file at once, which must not be copied instead."""
    source, target, other = tmp_path / "source.raw", tmp_path / "target.raw", tmp_path / "other.raw"
    source.write_bytes(content(32 * MiB))
    other.write_bytes(content(32 * MiB, 2))

    async def run() -> None:
        reader = await opened(source, Access.READ)
        writer = await transports.connect(str(target), Access.WRITE, create_size=32 * MiB)
        before = len(os.listdir("/proc/self/fd"))
        starts = range(0, 32 * MiB, MiB)
        copies = [asyncio.create_task(writer.copy_from(reader, at, at, MiB)) for at in [*starts] * 8]
        await asyncio.sleep(0)
        await reader.close()
        others = [os.open(other, os.O_RDONLY) for _ in range(4)]
        assert await asyncio.gather(*copies) == [True] * len(copies)
        for fd in others:
            os.close(fd)
        assert len(os.listdir("/proc/self/fd")) == before - 1, "only the source's own is gone"
        await writer.close()

    asyncio.run(run())
    assert target.read_bytes() == source.read_bytes()


def test_no_copy_from_what_cannot_be_copied_from(tmp_path: Path) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(content(MiB))
    target.write_bytes(bytes(MiB))

    async def run() -> None:
        reader, writer, read_only = await opened(source, Access.READ), await opened(target), await opened(target)
        memory = await transports.connect("memory:source", Access.WRITE, create_size=MiB)
        assert not await writer.copy_from(memory, 0, 0, 4096)
        assert not await writer.copy_from(writer, 0, 100, 4096), "the kernel refuses ranges that overlap"
        with pytest.raises(Fatal, match="beyond the end"):
            await writer.copy_from(reader, MiB - 1, 0, 2)
        with pytest.raises(Fatal, match="beyond the end"):
            await writer.copy_from(reader, 0, MiB - 1, 2)
        assert not await reader.copy_from(writer, 0, 0, 4096), "it is open for reading"
        os.truncate(source, 5000)
        assert not await writer.copy_from(reader, 4096, 0, 4096), "reading then finds that it has shrunk"
        for store in (reader, writer, read_only, memory):
            await store.close()

    asyncio.run(run())
    assert source.read_bytes() == content(MiB)[:5000]
