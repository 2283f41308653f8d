"""Direct I/O on local files: any byte range, any buffer, and the page cache left alone where blocks are whole."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpconv import transports
from mpconv.model.errors import Fatal, NoSuchImage
from mpconv.model.extent import Kind
from mpconv.model.units import KiB, MiB
from mpconv.transports.base import Access, Opening, Transport
from mpconv.workers import buffers

DIRECT = Opening(direct=True)
SIZE = 5 * MiB + 513
RANGES = [
    (0, 1),
    (0, 4096),
    (1, 511),
    (4095, 2),
    (4096, 4097),
    (10_000, 5000),
    (20_480, 65_536),
    (24_575, 4098),
    (MiB - 3, 7),
    (MiB + 512, 3 * MiB + 7),
    (SIZE - 513, 513),
    (SIZE - 4096 - 513, 4096 + 513),
    (SIZE - 1, 1),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "image.raw"
    found.write_bytes(random.Random(3).randbytes(SIZE))
    return found


async def opened(path: Path, access: Access = Access.WRITE, create_size: int | None = None) -> Transport:
    return await transports.connect(str(path), access, create_size=create_size, opening=DIRECT)


def cached(path: Path) -> int:
    """Pages of the file in the page cache."""
    command = ["fincore", "--noheadings", "--output", "PAGES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def dropped(path: Path) -> None:
    """Nothing of the file is in the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert cached(path) == 0


@pytest.mark.parametrize("shift", [0, 1, 8, 512, 4095], ids="buffer+{}".format)
def test_any_range_from_any_buffer(path: Path, shift: int) -> None:
    async def run() -> None:
        model = bytearray(path.read_bytes())
        store = await opened(path)
        assert (store.size, store.limits.alignment) == (SIZE, 4096)
        memory = buffers.make(8 * MiB)
        for number, (offset, length) in enumerate(RANGES):
            written = random.Random(number).randbytes(length)
            memory[:] = b"\xee" * len(memory)
            memory[shift : shift + length] = written
            await store.write(offset, memory[shift : shift + length])
            model[offset : offset + length] = written
            memory[:] = b"\xee" * len(memory)
            await store.read_into(offset, memory[shift : shift + length])
            assert memory[shift : shift + length] == written, (offset, length)
            assert memory[:shift] == b"\xee" * shift
            assert memory[shift + length : shift + length + 8192] == b"\xee" * 8192
        await store.flush()
        await store.close()
        assert path.read_bytes() == model
        assert path.stat().st_size == SIZE

    asyncio.run(run())


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "bounced"])
def test_whole_blocks_pass_the_page_cache_by(path: Path, shift: int) -> None:
    async def run() -> None:
        dropped(path)
        buffer = buffers.make(2 * MiB + 4096)[shift : shift + 2 * MiB]
        store = await opened(path)
        await store.read_into(MiB, buffer)
        await store.write(2 * MiB, buffer)
        assert cached(path) == 0
        await store.write(MiB - 1, buffer[: 4096 + 2])
        assert cached(path) == 2, "the pages of the two bytes beside the whole block"
        await store.close()
        dropped(path)
        usual = await transports.connect(str(path), Access.READ)
        await usual.read_into(MiB, buffer)
        assert cached(path) >= 512
        await usual.close()

    asyncio.run(run())


def test_neighbours_in_shared_blocks_at_the_same_time(path: Path) -> None:
    async def run() -> None:
        store = await opened(path)
        for seed in range(5):
            edges = sorted(random.Random(seed).sample(range(SIZE), 99))
            edges += range(MiB, MiB + 8192, 512)
            pieces = [*itertools.pairwise(sorted({0, *edges, SIZE}))]
            whole = buffers.make(SIZE)
            whole[:] = random.Random(seed).randbytes(SIZE)
            await asyncio.gather(*(store.write(start, whole[start:end]) for start, end in pieces))
            found = buffers.make(SIZE)
            await asyncio.gather(*(store.read_into(start, found[start:end]) for start, end in pieces))
            assert found == whole
        await store.close()
        assert path.read_bytes() == whole

    asyncio.run(run())


def test_what_is_written_one_way_is_read_the_other(path: Path) -> None:
    async def run() -> None:
        direct, usual = await opened(path), await transports.connect(str(path), Access.WRITE)
        for writer, reader in ((direct, usual), (usual, direct)):
            buffer = buffers.make(MiB)
            for offset, length in ((0, MiB), (777, 100_000)):
                buffer[:length] = os.urandom(length)
                await writer.write(offset, buffer[:length])
                found = buffers.make(MiB)[:length]
                await reader.read_into(offset, found)
                assert found == buffer[:length]
        await direct.close()
        await usual.close()

    asyncio.run(run())


def test_zeros_and_holes_are_seen(path: Path) -> None:
    async def run() -> None:
        store = await opened(path)
        assert await store.zero(MiB + 5, 2 * MiB)
        found = buffers.make(SIZE)
        await store.read_into(0, found[:SIZE])
        model = bytearray(random.Random(3).randbytes(SIZE))
        model[MiB + 5 : 3 * MiB + 5] = bytes(2 * MiB)
        assert found[:SIZE] == model
        kinds = [extent.kind for extent in await store.block_status(0, SIZE)]
        assert kinds == [Kind.DATA, Kind.ZERO, Kind.DATA]
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, SIZE])
def test_a_new_file(path: Path, size: int) -> None:
    async def run() -> None:
        store = await opened(path, create_size=size)
        assert store.zero_initialised
        content = buffers.make(max(size, 1))[:size]
        await store.read_into(0, content)
        assert content == bytes(size)
        content[:] = b"\x07" * size
        await store.write(0, content)
        await store.close()
        assert path.read_bytes() == b"\x07" * size

    asyncio.run(run())


def test_reading_only(path: Path) -> None:
    async def run() -> None:
        store = await opened(path, Access.READ)
        for offset, length in ((0, 4096), (5, 5)):
            with pytest.raises(Fatal, match="error while writing at byte"):
                await store.write(offset, buffers.make(4096)[:length])
        os.truncate(path, 5000)
        with pytest.raises(Fatal, match="has shrunk") as caught:
            await store.read_into(4096, buffers.make(MiB))
        assert caught.value.offset == 5000
        await store.close()

    asyncio.run(run())


def test_what_is_not_there_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchImage):
        asyncio.run(opened(tmp_path / "missing"))


SMALL = 64 * KiB + 100
_places = st.one_of(st.integers(0, SMALL - 1), st.integers(0, SMALL // 4096).map(lambda n: n * 4096))
_steps = st.tuples(st.sampled_from(["write", "zero", "read"]), _places, _places, st.sampled_from([0, 0, 1, 512]))


def test_it_does_what_a_bytearray_does(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        store = runner.run(opened(tmp_path / "image.raw", create_size=SMALL))
        model = bytearray(SMALL)
        memory = buffers.make(2 * SMALL)

        async def follow(steps: list[tuple[str, int, int, int]]) -> None:
            for number, (what, one, two, shift) in enumerate(steps):
                start, end = min(one, two), min(SMALL, max(one, two) + 1)
                view = memory[shift : shift + end - start]
                if what == "write":
                    view[:] = random.Random(number).randbytes(len(view))
                    await store.write(start, view)
                    model[start:end] = view
                elif what == "zero":
                    assert await store.zero(start, len(view))
                    model[start:end] = bytes(len(view))
                else:
                    await store.read_into(start, view)
                    assert view == model[start:end]
            await store.read_into(0, memory[:SMALL])
            assert memory[:SMALL] == model

        @settings(
            max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(_steps, min_size=1, max_size=12))
        def check(steps: list[tuple[str, int, int, int]]) -> None:
            runner.run(follow(steps))

        check()
        runner.run(store.close())
