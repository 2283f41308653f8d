"""Zeros by DEALLOCATE: a real server frees real blocks, and servers that refuse, lie or die never make a wrong byte."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.model.errors import Retryable
from mpconv.model.units import GiB, KiB, MiB
from mpconv.transports.base import Access, Transport
from mpconv.transports.nfs.v42 import Deallocator, Where, deallocator
from mpconv.transports.nfs.v42.compound import Op
from tests.conftest import identical, mpconv
from tests.support.fake_nfs4 import FakeNfs4, Trouble
from tests.support.servers import NfsServer

FREED = "blocks are freed (DEALLOCATE, NFSv4.2)"


def old_file(path: Path, size: int) -> bytes:
    """A file on the server that has no zero byte; what is in it."""
    content = bytes(random.Random(size).choices(range(1, 256), k=4093)) * (size // 4093 + 1)
    path.write_bytes(content[:size])
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return content[:size]


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def with_store(url: str, run: Callable[[Transport], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = await transports.connect(url, Access.WRITE)
        try:
            await run(store)
        finally:
            await store.close()

    asyncio.run(whole())


# -- a real server

SIZE = 12 * MiB + 777


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, SIZE),
        (0, 4 * MiB),
        (1, 2 * MiB),
        (4095, 3 * MiB + 2),
        (MiB - 1, MiB),
        (5 * MiB + 513, MiB + 4096),
        (SIZE - 2 * MiB - 3, 2 * MiB + 3),
        (SIZE - MiB - 5, MiB + 4),
    ],
)
def test_old_data_is_gone_and_its_blocks_are_free(nfs: NfsServer, offset: int, length: int) -> None:
    path = nfs.path(f"zero-{offset}-{length}")
    content = bytearray(old_file(path, SIZE))
    before = blocks(path)

    async def run(store: Transport) -> None:
        assert store.zeroing == "zeros are written"
        assert await store.zero(offset, length)
        assert store.zeroing == FREED
        await store.flush()

    with_store(nfs.url(path.name), run)
    content[offset : offset + length] = bytes(length)
    assert path.read_bytes() == content, "and the size is what it was"
    assert before - blocks(path) >= length - 2 * 4096


def test_more_than_one_piece(nfs: NfsServer) -> None:
    """Cut into pieces of 1 GiB, none of which is left out, nor a block where two of them meet."""
    path, size = nfs.path("pieces"), 5 * GiB + 7
    with path.open("wb") as file:
        for at in (0, GiB - 5, GiB + 5, 2 * GiB, 3 * GiB + 11, 4 * GiB - 1, 5 * GiB - 100):
            file.seek(at)
            file.write(b"x" * 100)
        file.truncate(size)
        os.fsync(file.fileno())

    async def run(store: Transport) -> None:
        assert await store.zero(1, 4 * GiB + 4095)
        await store.flush()

    with_store(nfs.url(path.name), run)
    assert path.stat().st_size == size
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 4096, os.SEEK_DATA) >= 5 * GiB - 8192
        file.seek(0)
        assert file.read(100) == b"x" + bytes(99)
        file.seek(5 * GiB - 100)
        assert file.read(100) == b"x" * 100


def test_zeros_beside_writes_of_the_same_blocks(nfs: NfsServer) -> None:
    """Both go to the server on ways of their own; neighbours in one block must not harm each other."""
    path, step = nfs.path("beside"), MiB + 333
    content = bytearray(old_file(path, 16 * step))
    new = memoryview(bytearray(b"n" * step))

    async def run(store: Transport) -> None:
        done = await asyncio.gather(
            *(store.zero(n * step, step) if n % 2 else store.write(n * step, new) for n in range(16))
        )
        assert done == [True if n % 2 else None for n in range(16)]
        await store.flush()

    with_store(nfs.url(path.name), run)
    for n in range(16):
        content[n * step : (n + 1) * step] = bytes(step) if n % 2 else new
    assert path.read_bytes() == content


def test_what_is_too_small_is_not_worth_it(nfs: NfsServer) -> None:
    path = nfs.path("small")
    content = old_file(path, 2 * MiB)

    async def run(store: Transport) -> None:
        assert not await store.zero(0, MiB - 1)
        assert store.zeroing == "zeros are written"

    with_store(nfs.url(path.name), run)
    assert path.read_bytes() == content


@pytest.mark.skipif(shutil.which("strace") is None, reason="watches the server with strace")
def test_a_flush_makes_holes_durable(tmp_path: Path) -> None:
    """RFC 7862 does not say how durable they are, and ganesha does nothing for it by itself: COMMIT must."""
    with NfsServer(tmp_path) as server:
        old_file(server.path("durable"), 4 * MiB)
        log = tmp_path / "calls"
        command = ["strace", "-f", "-o", str(log), "-e", "trace=fallocate,fsync,fdatasync", "-p", str(server.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watcher:
            assert watcher.stderr is not None
            if "attached" not in watcher.stderr.readline():
                pytest.skip("strace may not attach here")

            async def run(store: Transport) -> None:
                assert await store.zero(0, 2 * MiB)
                await store.flush()

            with_store(server.url("durable"), run)
            watcher.terminate()
        calls = [name for line in log.read_text().splitlines() for name in ("fallocate", "sync") if f"{name}(" in line]
        assert calls == ["fallocate", "sync"]


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    with NfsServer(tmp_path) as server:
        old_file(server.path("image"), 4 * MiB)

        async def run(store: Transport) -> None:
            assert await store.zero(0, MiB)
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            with pytest.raises(Retryable):
                await store.zero(MiB, MiB)

        with_store(server.url("image"), run)


def test_close_ends_zeros_under_way(nfs: NfsServer) -> None:
    path = nfs.path("closed")
    old_file(path, 64 * MiB)

    async def run(store: Transport) -> None:
        under_way = [asyncio.create_task(store.zero(n * 4 * MiB, 4 * MiB)) for n in range(16)]
        await asyncio.sleep(0.004)
        await store.close()
        results = await asyncio.wait_for(asyncio.gather(*under_way, return_exceptions=True), 1)
        assert all(result is True or isinstance(result, Retryable) for result in results)
        assert isinstance(results[-1], Retryable)

    with_store(nfs.url(path.name), run)
    assert path.stat().st_size == 64 * MiB


def test_errors_leave_nothing_that_cannot_be_collected(nfs: NfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 crashes when it collects a memoryview that cffi has exported; before that it complains of it."""
    path, told = nfs.path("collected"), list[object]()
    old_file(path, 16 * MiB)
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    async def run(store: Transport) -> None:
        buffers = [memoryview(bytearray(4096)) for _ in range(32)]
        tasks = [
            asyncio.create_task((store.write if n % 2 else store.read_into)(n * 4096, buffer))
            for n, buffer in enumerate(buffers)
        ]
        await asyncio.sleep(0)
        await store.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            with pytest.raises(Retryable, match="closed"):
                assert result is not None
                raise result

    with_store(nfs.url(path.name), run)
    gc.collect()
    assert not told


def test_a_copy_into_a_file_full_of_old_data(nfs: NfsServer, tmp_path: Path) -> None:
    source, path = tmp_path / "source.img", nfs.path("old")
    with source.open("wb") as file:
        file.truncate(48 * MiB)
        file.seek(20 * MiB + 512)
        file.write(os.urandom(MiB))
    old_file(path, 48 * MiB)
    done = mpconv("convert", "-n", "-v", "-f", "raw", "-O", "raw", source, nfs.url(path.name))
    assert done.returncode == 0, done.stderr
    assert FREED in done.stdout + done.stderr
    assert identical(source, path)
    assert blocks(path) < 8 * MiB


# -- a fake server

FAKE_SIZE = 8 * MiB
WHERE = (MiB + 5, 3 * MiB)


def fake(**arguments: object) -> FakeNfs4:
    server = FakeNfs4(FAKE_SIZE, **arguments)  # type: ignore[arg-type]
    server.store = bytearray(b"x") * FAKE_SIZE
    return server


def maker(server: FakeNfs4, **arguments: float) -> Deallocator:
    return Deallocator(
        Where("127.0.0.1", server.port, server.path, 0, 0),
        size=FAKE_SIZE,
        fileid=42,
        read=server.read,
        write=server.write,
        **{"seconds": 0.25, "patience": 0.25, **arguments},
    )


def zeroed(*ranges: tuple[int, int]) -> bytearray:
    content = bytearray(b"x") * FAKE_SIZE
    for offset, length in ranges:
        content[offset : offset + length] = bytes(length)
    return content


def refused(server: FakeNfs4, dealloc: int | None = None) -> Deallocator:
    """False, now and ever after, without another word to the server; never slow."""
    found: list[Deallocator] = []

    async def run() -> None:
        async with server:
            made = maker(server)
            found.append(made)
            assert not await made.zero(*WHERE)
            assert made.doubt
            assert made.words == f"zeros are written (no DEALLOCATE: {made.doubt})"
            calls = server.calls.copy()
            assert not await made.zero(5 * MiB, MiB)
            assert server.calls == calls, "refusals are remembered"
            await made.close()

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 2
    if dealloc is not None:
        assert server.calls[Op.DEALLOCATE] == dealloc
    return found[0]


def test_the_honest_and_a_goodbye() -> None:
    async def run() -> None:
        async with fake() as server:
            made = maker(server)
            assert await made.zero(*WHERE)
            assert await made.zero(5 * MiB, MiB)
            assert server.store == zeroed(WHERE, (5 * MiB, MiB))
            assert made.words == FREED
            await made.close()
            await made.close()
            assert not await made.zero(*WHERE)
            counted = (Op.EXCHANGE_ID, Op.READ, Op.DEALLOCATE, Op.CLOSE, Op.DESTROY_SESSION, Op.DESTROY_CLIENTID)
            assert [server.calls[operation] for operation in counted] == [1, 1, 2, 1, 1, 1]

    asyncio.run(run())


def test_a_new_connection_after_a_while_proves_itself_too() -> None:
    async def run() -> None:
        async with fake() as server:
            made = maker(server, idle=0)
            for n in range(3):
                assert await made.zero(n * MiB, MiB)
                await asyncio.sleep(0.001)
            assert server.store == zeroed((0, 3 * MiB))
            assert [server.calls[operation] for operation in (Op.EXCHANGE_ID, Op.READ, Op.DEALLOCATE)] == [3, 3, 3]
            server.elsewhere = bytearray(FAKE_SIZE)
            assert not await made.zero(3 * MiB, MiB)
            assert server.calls[Op.DEALLOCATE] == 3
            await made.close()

    asyncio.run(run())


@pytest.mark.parametrize("trouble", [*Trouble, 10004, 10044, 10008, 10013, 10052, 10038, 13, 30], ids=str)
@pytest.mark.parametrize("operation", [Op.EXCHANGE_ID, Op.LOOKUP, Op.OPEN, Op.READ, Op.DEALLOCATE])
def test_trouble_anywhere(operation: Op, trouble: Trouble | int) -> None:
    server = fake(trouble={operation: trouble})
    refused(server, dealloc=operation is Op.DEALLOCATE)
    assert server.store == zeroed(), "and what was written to prove the file is gone again"


def test_nothing_is_lost_in_a_file_of_the_same_number_and_size() -> None:
    """Another file system has a file that looks the same: it must not be touched."""
    server = fake()
    server.elsewhere = bytearray(server.store)
    made = refused(server, dealloc=0)
    assert made.doubt == "it is another file"
    assert server.store == zeroed()


def test_a_file_of_another_size_is_not_the_same() -> None:
    server = fake()
    server.size += 1
    refused(server, dealloc=0)


LIES: dict[str, Callable[[bytearray, int, int], object]] = {
    "nothing": lambda store, offset, length: None,
    "only-the-beginning": lambda store, offset, length: store.__setitem__(slice(offset, offset + 4096), bytes(4096)),
    "all-but-the-end": lambda store, offset, length: store.__setitem__(
        slice(offset, offset + length - 1), bytes(length - 1)
    ),
    "whole-blocks-only": lambda store, offset, length: store.__setitem__(slice(2 * MiB, 4 * MiB), bytes(2 * MiB)),
    "ends-only": lambda store, offset, length: [
        store.__setitem__(slice(at, at + 4096), bytes(4096)) for at in (offset, offset + length - 4096)
    ],
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("after", [0, 1])
def test_a_server_that_says_ok_and_does_something_else(lie: str, after: int) -> None:
    async def run() -> None:
        async with fake() as server:
            made = maker(server)

            def deallocate(offset: int, length: int) -> None:
                if server.calls[Op.DEALLOCATE] > after:
                    LIES[lie](server.store, offset, length)
                else:
                    server.zero(offset, length)

            server.deallocate = deallocate
            if after:
                assert await made.zero(6 * MiB, MiB)
            assert not await made.zero(*WHERE)
            assert made.doubt is not None
            assert made.doubt.startswith("the server answers OK, and byte ")
            assert not await made.zero(*WHERE)
            assert server.calls[Op.DEALLOCATE] == after + 1
            await made.close()

    asyncio.run(run())


LEFT = [
    [(2 * MiB, 2 * MiB + 4096)],
    [(2 * MiB - 4096, 2 * MiB), (3 * MiB, 3 * MiB + 512)],
    [(at, at + 512) for at in range(MiB + 8192, 3 * MiB, 8192)],
]


@pytest.mark.parametrize("data", LEFT)
def test_what_seek_tells_to_be_data_is_read_back(data: list[tuple[int, int]]) -> None:
    """Hardly any sample would find the little that there is."""
    server = FakeNfs4(FAKE_SIZE, data=data, store=bytearray(FAKE_SIZE), deallocate=lambda offset, length: None)
    for start, end in data:
        server.store[start:end] = b"x" * (end - start)
    told = re.match("the server answers OK, and byte ([0-9]+) on is not zero", refused(server, dealloc=1).doubt or "")
    assert told is not None
    assert any(server.store[int(told[1]) :][: 4 * KiB])


@pytest.mark.parametrize("data", [[(MiB, MiB + 65536), (3 * MiB, 5 * MiB)], [(0, FAKE_SIZE)], []])
def test_blocks_that_are_not_freed_and_are_zeros(data: list[tuple[int, int]]) -> None:
    """A server with large blocks, one without holes, and one that frees all."""

    async def run() -> None:
        async with fake(data=data) as server:
            made = maker(server)
            assert await made.zero(*WHERE)
            assert server.store == zeroed(WHERE)
            await made.close()

    asyncio.run(run())


@pytest.mark.parametrize("data", [[(MiB, 6 * MiB)], [(at, at + 512) for at in range(MiB, 6 * MiB, 8192)]])
def test_more_left_than_is_worth_reading(data: list[tuple[int, int]]) -> None:
    async def run() -> None:
        async with fake(data=data) as server:
            made = maker(server)
            assert not await made.zero(MiB - 8192, 6 * MiB)
            assert made.doubt == "the server answers OK, and tells of data that are left"
            await made.close()

    asyncio.run(run())


@pytest.mark.parametrize("status", [10004, 10038])
def test_holes_that_are_not_told(status: int) -> None:
    async def run() -> None:
        async with fake(trouble={Op.SEEK: status}) as server:
            made = maker(server)
            assert await made.zero(*WHERE)
            assert await made.zero(5 * MiB, MiB)
            assert server.calls[Op.SEEK] == 1, "and are not asked for again"
            await made.close()

    asyncio.run(run())


def test_a_server_that_cuts_the_file_off() -> None:
    server = fake()

    def cut(offset: int, length: int) -> None:
        server.zero(offset, length)
        server.size = offset + length

    server.deallocate = cut
    assert refused(server, dealloc=1).doubt == "the file has become another one"


@pytest.mark.parametrize("trouble", [*Trouble, 10052, 28], ids=str)
def test_trouble_half_way(trouble: Trouble | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pieces are zeros then and the others are as they were: the caller writes them all."""
    monkeypatch.setattr(deallocator, "_PIECE", MiB)
    server = fake(trouble={Op.DEALLOCATE: trouble}, after=2)
    refused(server, dealloc=3)
    assert server.store == zeroed((WHERE[0], 3 * MiB - WHERE[0]))


@pytest.mark.parametrize("operation", [Op.EXCHANGE_ID, Op.READ, Op.DEALLOCATE])
@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_it_ends_while_the_server_is_silent(operation: Op, how: str) -> None:
    async def run() -> None:
        async with fake(trouble={operation: Trouble.HANG}) as server:
            made = maker(server, seconds=30, patience=30)
            zeroing = asyncio.create_task(made.zero(*WHERE))
            while not server.calls[operation]:
                await asyncio.sleep(0.001)
            if how == "closed":
                await made.close()
                assert not await asyncio.wait_for(zeroing, 1)
            else:
                zeroing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(zeroing, 1)
            assert server.store == zeroed()
            server.trouble = {}
            again = await asyncio.wait_for(made.zero(*WHERE), 1)
            assert server.store == (zeroed(WHERE) if again else zeroed())
            await asyncio.wait_for(made.close(), 2)

    asyncio.run(run())


@pytest.mark.parametrize("at", [0, 1, 3])
def test_errors_of_the_other_protocol_come_out(at: int) -> None:
    async def run() -> None:
        async with fake() as server:
            made = maker(server)
            count = 0

            async def read(offset: int, buffer: memoryview) -> None:
                nonlocal count
                count += 1
                if count > at:
                    raise Retryable("lost")
                await server.read(offset, buffer)

            made._read = read
            with pytest.raises(Retryable, match="lost"):
                await made.zero(*WHERE)
            await made.close()

    asyncio.run(run())


def test_nobody_listens() -> None:
    async def run() -> None:
        async with fake() as server:
            pass
        made = maker(server)
        started = time.monotonic()
        assert not await made.zero(*WHERE)
        assert time.monotonic() - started < 0.2
        assert not await made.zero(0, 64 * KiB)
        await made.close()

    asyncio.run(run())
