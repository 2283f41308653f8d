"""The contract of transports/base.py, asked of every transport, against real servers."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpconv import transports
from mpconv.model.errors import Fatal, NoSuchImage, Retryable
from mpconv.model.extent import Kind
from mpconv.model.units import KiB, MiB
from mpconv.transports.base import Access, Transport
from tests.conftest import Lun
from tests.support.servers import NfsServer

SIZE = 5 * MiB
KINDS = ["file", "memory", "null", "nfs", "iscsi-512", "iscsi-4096"]
_numbers = itertools.count()

ODD_RANGES = [
    (0, 1),
    (1, 511),
    (511, 1),
    (512, 512),
    (1024, 513),
    (4095, 2),
    (4096, 4096),
    (10_000, 5000),
    (20_480, 1),
    (24_575, 4098),
    (MiB - 3, 7),
    (MiB + 512, 3 * MiB + 7),
    (SIZE - 8192, 4096),
    (SIZE - 513, 513),
]


@dataclass(frozen=True)
class Stores:
    """How stores of one kind are made. `keeps`: what was written can be read (not so with null:)."""

    kind: str
    make: Callable[[int], Awaitable[str]]
    missing: str | None
    keeps: bool = True
    created: bool = True

    async def open(self, size: int = SIZE) -> Transport:
        """A new store, all zeros, open for writing."""
        return await transports.connect(await self.make(size), Access.WRITE)


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    kind = request.param
    if kind.startswith("iscsi"):
        lun: Callable[..., Lun] = request.getfixturevalue("lun")
        block_size = int(kind.partition("-")[2])

        async def make(size: int) -> str:
            return lun(size, block_size=block_size).url

        return Stores(kind, make, None, created=False)
    if kind == "null":

        async def make(size: int) -> str:
            return f"null:?size={size}"

        return Stores(kind, make, None, keeps=False, created=False)
    if kind == "nfs":
        server: NfsServer = request.getfixturevalue("nfs")
        url_of = server.url
    elif kind == "file":

        def url_of(name: str) -> str:
            return str(tmp_path / name)
    else:

        def url_of(name: str) -> str:
            return f"memory:{name}"

    async def make(size: int) -> str:
        url = url_of(f"conformance{next(_numbers)}")
        await (await transports.connect(url, Access.WRITE, create_size=size)).close()
        return url

    return Stores(kind, make, url_of("conformance-missing"))


def data(length: int, seed: int = 1) -> memoryview:
    return memoryview(bytearray(random.Random(seed).randbytes(length)))


async def read(store: Transport, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(b"\xee" * length))
    await store.read_into(offset, buffer)
    return bytes(buffer)


async def everything(store: Transport) -> bytes:
    return await read(store, 0, store.size)


def same(found: bytes, expected: bytes | bytearray) -> bool:
    """Without pytest's comparison of megabytes, and telling the first difference."""
    if found == expected:
        return True
    at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), "the end")
    print(f"{len(found)} and {len(expected)} bytes, which differ at {at}")
    return False


@pytest.mark.parametrize("count", [1, 3, 2000])
def test_parts_are_written_one_after_the_other(stores: Stores, count: int) -> None:
    """Of any number: a system call takes 1024 at most."""

    async def run() -> None:
        store = await stores.open()
        before = await everything(store)
        written = data(3 * count)
        await store.write_parts(1001, [written[at : at + 3] for at in range(0, len(written), 3)])
        if stores.keeps:
            expected = before[:1001] + written + before[1001 + len(written) :]
            assert same(await everything(store), expected)
        await store.close()

    asyncio.run(run())


def test_what_is_written_is_read_and_nothing_else_changes(stores: Stores) -> None:
    async def run() -> None:
        store = await stores.open()
        assert store.size == SIZE
        model = bytearray(SIZE)
        for number, (offset, length) in enumerate(ODD_RANGES):
            written = data(length, number)
            await store.write(offset, written)
            assert bytes(written) == bytes(data(length, number)), "the caller's buffer is only read"
            if stores.keeps:
                model[offset : offset + length] = written
            assert same(await read(store, offset, length), model[offset : offset + length]), (offset, length)
        assert same(await everything(store), model)
        for offset, length in ODD_RANGES:
            assert same(await read(store, offset, length), model[offset : offset + length]), (offset, length)
        await store.close()

    asyncio.run(run())


def test_many_requests_in_flight(stores: Stores) -> None:
    """Neighbours that share blocks are written at the same time; then reads that overlap."""

    async def run() -> None:
        store = await stores.open()
        edges = sorted(random.Random(5).sample(range(SIZE), 31))
        pieces = [*itertools.pairwise([0, *edges, SIZE])]
        assert len(pieces) == 32
        whole = data(SIZE)
        await asyncio.gather(*(store.write(start, whole[start:end]) for start, end in pieces))
        model = bytes(whole) if stores.keeps else bytes(SIZE)
        assert same(await everything(store), model)
        ranges = [(n * 100_001, 1_500_000 + n * 513) for n in range(32)]
        found = await asyncio.gather(*(read(store, start, length) for start, length in ranges))
        assert all(same(got, model[start : start + length]) for got, (start, length) in zip(found, ranges, strict=True))
        await store.close()

    asyncio.run(run())


def test_small_neighbours_in_one_block_at_the_same_time(stores: Stores) -> None:
    async def run() -> None:
        store = await stores.open(64 * KiB)
        whole = data(4096)
        await asyncio.gather(*(store.write(8192 + at, whole[at : at + 128]) for at in range(0, 4096, 128)))
        model = bytes(8192) + (bytes(whole) if stores.keeps else bytes(4096)) + bytes(64 * KiB - 12288)
        assert same(await everything(store), model)
        await store.close()

    asyncio.run(run())


OUTSIDE = [(SIZE, 1), (SIZE - 1, 2), (SIZE - 4096, 4097), (-1, 1), (-4096, 4096), (1 << 62, 512), (0, SIZE + 1)]
REQUESTS: dict[str, Callable[[Transport, int, int], Awaitable[object]]] = {
    "reading": lambda store, offset, length: store.read_into(offset, memoryview(bytearray(length))),
    "writing": lambda store, offset, length: store.write(offset, memoryview(bytearray(b"\xff" * length))),
    "zeroing": lambda store, offset, length: store.zero(offset, length),
    "reading block status": lambda store, offset, length: store.block_status(offset, length),
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_outside_is_fatal_and_changes_nothing(stores: Stores, request_name: str) -> None:
    async def run() -> None:
        store = await stores.open()
        await store.write(0, data(SIZE))
        before = await everything(store)
        for offset, length in OUTSIDE:
            if not store.fixed_size and request_name in ("writing", "zeroing"):
                await REQUESTS[request_name](store, offset, length)
                continue
            with pytest.raises(Fatal) as caught:
                await REQUESTS[request_name](store, offset, length)
            assert (caught.value.offset, caught.value.image) == (offset, store.name)
            assert caught.value.operation == request_name.replace("zeroing", "writing")
        assert store.size == SIZE
        assert same(await everything(store), before)
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_request_of_no_bytes_does_nothing(stores: Stores, request_name: str) -> None:
    async def run() -> None:
        store = await stores.open()
        for offset in (0, 1, 513, SIZE):
            await REQUESTS[request_name](store, offset, 0)
        assert same(await everything(store), bytes(SIZE))
        await store.close()

    asyncio.run(run())


def test_zero_leaves_zeros_or_says_no(stores: Stores) -> None:
    async def run() -> None:
        store = await stores.open()
        written = data(SIZE)
        await store.write(0, written)
        model = bytearray(written) if stores.keeps else bytearray(SIZE)
        for offset, length in [(0, 4096), (8192, 512), (20_000, 5000), (MiB, 2 * MiB), (SIZE - 8192, 8192), (77, 1)]:
            if await store.zero(offset, length):
                model[offset : offset + length] = bytes(length)
            assert same(await everything(store), model), (offset, length)
        await store.close()

    asyncio.run(run())


def test_zeros_at_the_same_time_as_writes_beside_them(stores: Stores) -> None:
    async def run() -> None:
        store = await stores.open()
        await store.write(0, data(SIZE))
        piece = 64 * KiB
        starts = range(0, 32 * piece, piece)
        for start in starts:
            if not await store.zero(start, piece):
                await store.write(start, memoryview(bytearray(piece)))
        written = data(piece, 7)
        await asyncio.gather(
            *(store.zero(start, piece) if start // piece % 2 else store.write(start, written) for start in starts)
        )
        filled = bytes(written) if stores.keeps else bytes(piece)
        for start in starts:
            assert same(await read(store, start, piece), bytes(piece) if start // piece % 2 else filled), start
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("filled", [False, True], ids=["fresh", "zeroed"])
def test_block_status_covers_all_and_never_calls_data_zeros(stores: Stores, filled: bool) -> None:
    async def run() -> None:
        url = await stores.make(SIZE)
        writer = await transports.connect(url, Access.WRITE)
        holes = not filled
        if filled:
            await writer.write(0, data(SIZE))
            holes = await writer.zero(MiB, 3 * MiB)
        for offset, length in [(0, 5000), (MiB + 300, 1), (2 * MiB, MiB), (4 * MiB - 1, 4098), (SIZE - 512, 512)]:
            await writer.write(offset, data(length))
        await writer.flush()
        store = await transports.connect(url, Access.READ)
        truth = await everything(store)
        kinds = set()
        for start, step in [(0, SIZE), (0, 300_000), (1, SIZE), (4097, MiB), (MiB + 299, 3), (SIZE - 1, 1)]:
            at = start
            while at < min(SIZE, start + 64 * step):
                length = min(step, SIZE - at)
                extents = await store.block_status(at, length)
                assert extents[0].start == at
                assert all(first.end == second.start for first, second in itertools.pairwise(extents))
                assert extents[-1].end <= at + length
                for extent in extents:
                    kinds.add(extent.kind)
                    assert extent.kind is Kind.DATA or not any(truth[extent.start : extent.end]), extent
                at = extents[-1].end
        if holes and stores.kind not in ("memory", "null"):
            assert kinds == {Kind.DATA, Kind.ZERO}, "holes are seen here"
        await store.close()
        await writer.close()

    asyncio.run(run())


def test_flushed_bytes_are_seen_by_others(stores: Stores) -> None:
    async def run() -> None:
        url = await stores.make(SIZE)
        store = await transports.connect(url, Access.WRITE)
        await store.flush()
        await asyncio.gather(*(store.write(at, data(5000, at)) for at in range(0, 100_000, 5000)))
        await asyncio.gather(store.flush(), store.flush())
        other = await transports.connect(url, Access.READ)
        expected = b"".join(bytes(data(5000, at)) for at in range(0, 100_000, 5000))
        assert same(await read(other, 0, 100_000), expected if stores.keeps else bytes(100_000))
        await store.close()
        await other.close()

    asyncio.run(run())


@pytest.mark.parametrize("request_name", [*REQUESTS, "flushing"])
def test_every_request_after_close_is_retryable(stores: Stores, request_name: str) -> None:
    async def run() -> None:
        store = await stores.open()
        await store.close()
        await store.close()
        with pytest.raises(Retryable, match="the connection is closed") as caught:
            if request_name == "flushing":
                await store.flush()
            else:
                await REQUESTS[request_name](store, 4096, 512)
        assert caught.value.image == store.name
        assert caught.value.operation == request_name.replace("zeroing", "writing")
        assert caught.value.offset == (4096 if request_name != "flushing" else caught.value.offset)
        await store.close()

    asyncio.run(run())


def test_close_ends_what_is_under_way(stores: Stores) -> None:
    """Each request has been done, or raises Retryable with its own offset; none is left hanging."""

    async def run() -> None:
        store = await stores.open()
        await store.write(0, data(SIZE))
        buffers = [memoryview(bytearray(MiB)) for _ in range(4)]
        reads = [asyncio.create_task(store.read_into(n * MiB, buffer)) for n, buffer in enumerate(buffers)]
        flush = asyncio.create_task(store.flush())
        await asyncio.sleep(0)
        await store.close()
        for n, result in enumerate(await asyncio.gather(*reads, return_exceptions=True)):
            if result is None:
                assert same(bytes(buffers[n]), (data(SIZE) if stores.keeps else bytes(SIZE))[n * MiB : (n + 1) * MiB])
            else:
                assert isinstance(result, Retryable)
                assert (result.operation, result.offset, result.image) == ("reading", n * MiB, store.name)
        (result,) = await asyncio.gather(flush, return_exceptions=True)
        assert result is None or (isinstance(result, Retryable) and result.operation == "flushing")

    asyncio.run(run())


def test_what_does_not_exist_is_no_such_image(stores: Stores) -> None:
    if stores.missing is None:
        pytest.skip("such a store is never created")

    async def run() -> None:
        assert stores.missing is not None
        for access in Access:
            with pytest.raises(NoSuchImage, match="Could not open") as caught:
                await transports.connect(stores.missing, access)
            assert "\n" not in str(caught.value)

    asyncio.run(run())


def test_identity_is_that_of_the_store(stores: Stores) -> None:
    async def run() -> None:
        urls = [await stores.make(SIZE), await stores.make(SIZE)]
        first, again = [await transports.connect(urls[0], access) for access in Access]
        other = await transports.connect(urls[1], Access.READ)
        assert (first.identity == again.identity) == stores.keeps
        assert first.identity != other.identity
        hash(first.identity)
        for store in (first, again, other):
            await store.close()

    asyncio.run(run())


def test_facts_are_sane(stores: Stores) -> None:
    async def run() -> None:
        url = await stores.make(SIZE)
        store = await transports.connect(url, Access.WRITE)
        assert store.name == url
        assert not store.zero_initialised, "it was not this connection that made it"
        limits = store.limits
        assert limits.alignment == (int(stores.kind[6:]) if stores.kind.startswith("iscsi") else 1)
        for largest in (limits.largest_read, limits.largest_write):
            assert 64 * KiB <= largest <= 64 * MiB
            assert largest % limits.alignment == 0
        assert store.creatable == stores.created
        assert store.fixed_size == stores.keeps
        await store.close()

    asyncio.run(run())


def test_a_created_store_reads_as_zeros(stores: Stores) -> None:
    if not stores.created:
        pytest.skip("such a store is never created")

    async def run() -> None:
        url = await stores.make(SIZE)
        old = await transports.connect(url, Access.WRITE)
        await old.write(0, data(SIZE))
        await old.close()
        store = await transports.connect(url, Access.WRITE, create_size=3 * MiB + 5)
        assert store.zero_initialised
        assert store.size == 3 * MiB + 5
        assert same(await everything(store), bytes(3 * MiB + 5))
        await store.write(3 * MiB, data(5))
        await store.close()

    asyncio.run(run())


def test_names_hold_no_password() -> None:
    for url in ("iscsi://me%secret@host/iqn.x/1", "nfs://me@host/x", "iscsi://host/iqn.x/1?target_password=secret"):
        with pytest.raises(Fatal) as caught:
            asyncio.run(transports.connect(url.replace("host", "no-such-host.invalid"), Access.READ))
        assert "secret" not in str(caught.value)


SMALL = 64 * KiB
_places = st.one_of(st.integers(0, SMALL - 1), st.integers(0, SMALL // 512 - 1).map(lambda n: n * 512))
_steps = st.tuples(st.sampled_from(["write", "zero", "read", "status"]), _places, _places)


def test_it_does_what_a_bytearray_does(stores: Stores) -> None:
    """One store for all examples: what it holds at first is whatever the last one left."""
    with asyncio.Runner() as runner:
        store = runner.run(stores.open(SMALL))

        @settings(
            max_examples=15,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(_steps, min_size=1, max_size=12))
        def check(steps: list[tuple[str, int, int]]) -> None:
            runner.run(follow(store, steps, stores.keeps))

        check()
        runner.run(store.close())


async def follow(store: Transport, steps: list[tuple[str, int, int]], keeps: bool) -> None:
    model = bytearray(await everything(store))
    for number, (what, one, two) in enumerate(steps):
        start, end = min(one, two), max(one, two) + 1
        if what == "write":
            written = data(end - start, number)
            await store.write(start, written)
            if keeps:
                model[start:end] = written
        elif what == "zero":
            if await store.zero(start, end - start):
                model[start:end] = bytes(end - start)
        elif what == "read":
            assert same(await read(store, start, end - start), model[start:end])
        else:
            for extent in await store.block_status(start, end - start):
                assert extent.kind is Kind.DATA or not any(model[extent.start : extent.end])
    assert same(await everything(store), model)


def beside(url: str, what: str) -> str:
    path, mark, query = url.partition("?")
    return f"{path}-{what}{mark}{query}"


def test_what_a_connection_made_it_removes_and_nothing_else(stores: Stores) -> None:
    async def run() -> None:
        url = await stores.make(SIZE)
        opened = await transports.connect(url, Access.WRITE)
        assert not await opened.discard()
        await opened.close()
        if not stores.created:
            return
        emptied = await transports.connect(url, Access.WRITE, create_size=SIZE)
        assert stores.kind == "memory" or not await emptied.discard()  # it was there before
        await emptied.close()
        made = await transports.connect(beside(stores.missing, "made"), Access.WRITE, create_size=SIZE)
        assert await made.discard()
        assert not await made.discard()
        await made.close()
        with pytest.raises(NoSuchImage):
            await transports.connect(made.name, Access.READ)

    asyncio.run(run())


def test_what_lies_under_the_name_by_now_is_left_alone(stores: Stores) -> None:
    async def run() -> None:
        if not stores.created:
            return
        url = beside(stores.missing, "another")
        made = await transports.connect(url, Access.WRITE, create_size=SIZE)
        assert await made.discard()
        another = await transports.connect(url, Access.WRITE, create_size=SIZE)
        assert not await made.discard()
        await (await transports.connect(url, Access.READ)).close()
        assert await another.discard()
        await made.close()
        await another.close()

    asyncio.run(run())
