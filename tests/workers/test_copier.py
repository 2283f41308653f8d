"""The copy coroutine over stores in memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.formats.raw import RawImage
from mpconv.model.errors import Fatal, Retryable
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.model.units import SECTOR, KiB
from mpconv.protocol.job import Job
from mpconv.transports.base import Transport
from mpconv.transports.memory import MemoryTransport
from mpconv.workers.copier import Copier
from mpconv.workers.lease_queue import HeldLease, Reports

OLD = b"\xa5"
BUFFER = 8 * KiB


class Recorder(MemoryTransport):
    """A store that notes what is done to it; each write lets the other coroutines run before it lands."""

    def __init__(self, content: bytes, *, can_zero: bool = True) -> None:
        super().__init__("memory:recorder", bytearray(content), created=False)
        self.can_zero = can_zero
        self.read: list[tuple[int, int]] = []
        self.wrote: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.broken_at: int | None = None

    @property
    def content(self) -> bytes:
        return bytes(self._store)

    def _break(self, operation: str, offset: int, length: int) -> None:
        if self.broken_at is not None and offset <= self.broken_at < offset + length:
            raise self.error(Fatal, operation, offset, "Input/output error")

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read.append((offset, len(buffer)))
        self._break("reading", offset, len(buffer))
        await super().read_into(offset, buffer)

    async def write(self, offset: int, buffer: memoryview) -> None:
        self.wrote.append((offset, len(buffer)))
        self._break("writing", offset, len(buffer))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        await super().write(offset, buffer)
        self.under_way -= 1

    async def zero(self, offset: int, length: int) -> bool:
        if not self.can_zero:
            return False
        self.zeroed.append((offset, length))
        return await super().zero(offset, length)


class Reported(Reports):
    """What the copier reported, in order; `news` is set at every report."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.finished: list[HeldLease] = []
        self.pieces = 0
        self.lost_ranges: list[tuple[str, list[tuple[int, int]]]] = []
        self.words: list[str] = []
        self.news = asyncio.Event()

    def ready(self, lease: HeldLease) -> None:
        self.heard.append(("ready", lease.epoch))
        self.news.set()

    def done(self, lease: HeldLease) -> None:
        self.heard.append(("done", lease.epoch))
        self.finished.append(lease)
        self.news.set()

    def want_more(self) -> None:
        self.pieces += 1

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        self.lost_ranges.append((why, ranges))

    def said(self, text: str) -> None:
        self.words.append(text)

    async def until(self, *reports: tuple[str, int]) -> None:
        while not set(reports) <= set(self.heard):
            self.news.clear()
            await self.news.wait()


def job(size: int, **options: Any) -> Job:
    return Job(
        **{
            "id": 1,
            "sources": [Place(url="memory:source")],
            "targets": [Place(url="memory:target")],
            "size": size,
            "in_order": False,
            "sparse_size": 4 * KiB,
            "zero_initialised": False,
            "requests": 4,
            "durable": True,
            "buffer_size": BUFFER,
            **options,
        }
    )


def lease(epoch: int, extent: Extent, *, token: bool = True) -> HeldLease:
    held = HeldLease(epoch, extent, asyncio.Event())
    if token:
        held.token.set()
    return held


class Scene:
    """A copier whose coroutines run; the first error of one ends the scene."""

    def __init__(self, source: Recorder, *targets: Recorder, **options: Any) -> None:
        self.reports = Reported()
        self.copier = Copier(job(source.size, **options), RawImage(source), list(targets), self.reports)

    async def play(self, script: Callable[[Scene], Awaitable[None]]) -> None:
        coroutines = [asyncio.ensure_future(self.copier.run()) for _ in range(self.copier.job.requests)]
        steps = asyncio.ensure_future(script(self))
        done, _ = await asyncio.wait([*coroutines, steps], return_when=asyncio.FIRST_COMPLETED)
        for running in [*coroutines, steps]:
            running.cancel()
        await asyncio.gather(*coroutines, steps, return_exceptions=True)
        for ended in done:
            ended.result()


def play(source: Recorder, *targets: Recorder, script: Callable[[Scene], Awaitable[None]], **options: Any) -> Reported:
    """Run the script and hand back what was reported."""

    async def run() -> Reported:
        scene = Scene(source, *targets, **options)
        await scene.play(script)
        return scene.reports

    return asyncio.run(run())


def copies(*extents: Extent) -> Callable[[Scene], Awaitable[None]]:
    """A script: leases that carry their tokens, until all are done."""

    async def script(scene: Scene) -> None:
        for epoch, extent in enumerate(extents, 1):
            await scene.copier.pieces.add(lease(epoch, extent))
        await scene.reports.until(*(("done", epoch) for epoch in range(1, len(extents) + 1)))

    return script


async def settle() -> None:
    """Turn the loop until all that can go on has gone on: nothing here waits for anything outside the loop."""
    for _ in range(50):
        await asyncio.sleep(0)


contents = st.lists(st.tuples(st.integers(1, 12 * KiB), st.sampled_from([b"\0", b"\x01", b"\xff"])), max_size=8).map(
    lambda parts: b"".join(byte * length for length, byte in parts)
)


@given(
    content=contents.filter(bool),
    cut=st.integers(1, 80),
    in_order=st.booleans(),
    can_zero=st.booleans(),
    sparse_size=st.sampled_from([0, 512, 4 * KiB, 5000]),
    zero_initialised=st.booleans(),
    requests=st.integers(1, 5),
)
@settings(deadline=None, max_examples=100)
def test_the_target_holds_the_source_s_bytes(content, cut, in_order, can_zero, sparse_size, zero_initialised, requests):
    source = Recorder(content)
    target = Recorder((b"\0" if zero_initialised else OLD) * len(content), can_zero=can_zero)
    cuts = [*range(0, len(content), cut * SECTOR), len(content)]
    reports = play(
        source,
        target,
        script=copies(*(Extent(start, end - start) for start, end in itertools.pairwise(cuts))),
        in_order=in_order,
        sparse_size=sparse_size,
        zero_initialised=zero_initialised,
        requests=requests,
    )
    assert target.content == content
    assert sum(found.zeros for found in reports.finished) <= content.count(0)
    assert sum(length for _, length in source.read) == len(content), "every byte is read once"
    assert all(length <= BUFFER for _, length in source.read)
    if zero_initialised:
        assert target.zeroed == []


def test_each_target_gets_the_bytes():
    content = b"\x07" * 20_000
    targets = [Recorder(OLD * 20_000), Recorder(OLD * 20_000, can_zero=False)]
    play(Recorder(content), *targets, script=copies(Extent(0, 20_000)))
    assert [target.content for target in targets] == [content] * 2


def test_pieces_are_counted_from_the_beginning_of_the_lease():
    """As qemu-img's buffers are: which zeros lie in one buffer decides what stays allocated."""
    source = Recorder(b"\x01" * 30_000)
    reports = play(source, Recorder(OLD * 30_000), script=copies(Extent(1000, 29_000)))
    assert source.read == [(1000, 8192), (9192, 8192), (17384, 8192), (25576, 4424)]
    assert reports.pieces == 4


def test_in_order_writes_ascend_one_at_a_time():
    size = 12 * BUFFER
    target = Recorder(OLD * size)
    halves = (Extent(0, size // 2), Extent(size // 2, size // 2))
    play(Recorder(b"\x01" * size), target, script=copies(halves[0]), in_order=True)
    play(Recorder(b"\x01" * size), target, script=copies(halves[1]), in_order=True)
    assert target.wrote == [(at, BUFFER) for at in range(0, size, BUFFER)]
    assert target.most_under_way == 1


def test_out_of_order_several_writes_are_under_way():
    size = 12 * BUFFER
    target = Recorder(OLD * size)
    play(Recorder(b"\x01" * size), target, script=copies(Extent(0, size)), requests=3)
    assert target.most_under_way == 3


def test_in_order_a_later_piece_that_is_read_first_waits_for_the_earlier_one():
    class SlowStart(Recorder):
        async def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset == 0:
                await first_may_be_read.wait()
            await super().read_into(offset, buffer)

    first_may_be_read = asyncio.Event()
    size = 3 * BUFFER
    target = Recorder(OLD * size)

    async def script(scene: Scene) -> None:
        await scene.copier.pieces.add(lease(1, Extent(0, size)))
        await settle()
        assert target.wrote == []
        first_may_be_read.set()
        await scene.reports.until(("done", 1))

    play(SlowStart(b"\x01" * size), target, script=script, in_order=True)
    assert target.wrote == [(at, BUFFER) for at in range(0, size, BUFFER)]


def test_nothing_is_written_without_the_token_and_ready_is_said_once():
    size = 3 * BUFFER
    source, target = Recorder(b"\x01" * BUFFER + bytes(2 * BUFFER)), Recorder(OLD * size)

    async def script(scene: Scene) -> None:
        held = lease(9, Extent(0, size), token=False)
        await scene.copier.pieces.add(held)
        await scene.reports.until(("ready", 9))
        await settle()
        assert len(source.read) == 3, "the pieces are read ahead"
        assert target.content == OLD * size
        held.token.set()
        await scene.reports.until(("done", 9))

    reports = play(source, target, script=script, in_order=True)
    assert reports.heard == [("ready", 9), ("done", 9)]
    assert target.content == source.content


def test_a_lease_with_its_token_is_never_said_to_be_ready():
    reports = play(Recorder(b"\x01" * BUFFER), Recorder(OLD * BUFFER), script=copies(Extent(0, BUFFER)))
    assert reports.heard == [("done", 1)]


def test_done_comes_once_and_after_the_last_write():
    size = 4 * BUFFER
    target = Recorder(OLD * size)

    class Strict(Reported):
        def done(self, lease: HeldLease) -> None:
            assert target.content == b"\x01" * size and target.under_way == 0
            super().done(lease)

    async def run() -> Reported:
        scene = Scene(Recorder(b"\x01" * size), target)
        scene.reports = scene.copier.pieces.reports = Strict()
        await scene.play(copies(Extent(0, size)))
        return scene.reports

    assert asyncio.run(run()).heard == [("done", 1)]


@pytest.mark.parametrize("kind", [Kind.ZERO, Kind.UNALLOCATED])
def test_a_zero_lease_is_one_zero_request_and_no_read(kind):
    size = 5 * BUFFER + 512
    source, target = Recorder(b"\x01" * size), Recorder(OLD * size)
    reports = play(source, target, script=copies(Extent(0, size, kind)))
    assert (source.read, target.wrote, target.zeroed) == ([], [], [(0, size)])
    assert target.content == bytes(size)
    assert reports.finished[0].zeros == size


def test_where_zeros_are_not_cheap_they_are_written_a_buffer_at_a_time():
    size = 5 * BUFFER + 512
    target = Recorder(OLD * size, can_zero=False)
    play(Recorder(b"\x01" * size), target, script=copies(Extent(0, size, Kind.ZERO)))
    assert target.content == bytes(size)
    assert max(length for _, length in target.wrote) == BUFFER


def test_zero_runs_inside_data_are_zeroed_and_counted():
    content = b"\x01" * 4 * KiB + bytes(8 * KiB) + b"\x01" * 4 * KiB
    target = Recorder(OLD * len(content))
    reports = play(Recorder(content), target, script=copies(Extent(0, len(content))), buffer_size=16 * KiB)
    assert target.zeroed == [(4 * KiB, 8 * KiB)]
    assert reports.finished[0].zeros == 8 * KiB
    assert target.content == content


@pytest.mark.parametrize(("broken", "operation"), [("source", "reading"), ("target", "writing")])
def test_an_error_ends_the_coroutine_and_the_lease_is_never_done(broken, operation):
    size = 4 * BUFFER
    stores = {"source": Recorder(b"\x01" * size), "target": Recorder(OLD * size)}
    stores[broken].broken_at = 2 * BUFFER

    async def run() -> Reported:
        scene = Scene(stores["source"], stores["target"], requests=1)
        with pytest.raises(Fatal, match=f"error while {operation} at byte {2 * BUFFER}"):
            await scene.play(copies(Extent(0, size)))
        return scene.reports

    assert asyncio.run(run()).heard == []


def test_a_failed_zero_request_comes_through():
    class Broken(Recorder):
        async def zero(self, offset: int, length: int) -> bool:
            raise self.error(Fatal, "writing", offset, "No space left on device")

    with pytest.raises(Fatal, match="No space left"):
        play(Recorder(b"\x01" * 512), Broken(OLD * 512), script=copies(Extent(0, 512, Kind.ZERO)))


def test_the_padding_of_the_last_sector_is_written_as_zeros():
    source, target = Recorder(b"\x01" * 700), Recorder(OLD * 1024)
    play(source, target, script=copies(Extent(0, 1024)))
    assert target.content == b"\x01" * 700 + bytes(324)


def test_without_zero_detection_zeros_are_written_and_nothing_is_given_back():
    size = 3 * BUFFER
    target = Recorder(OLD * size)
    play(
        Recorder(bytes(size)),
        target,
        script=copies(Extent(0, BUFFER), Extent(BUFFER, 2 * BUFFER, Kind.ZERO)),
        sparse_size=0,
    )
    assert (target.zeroed, target.content) == ([], bytes(size))
    assert sorted(target.wrote) == [(at, BUFFER) for at in range(0, size, BUFFER)]


@pytest.mark.parametrize(("through", "flushes"), [(False, 0), (True, 3)])
def test_write_through_flushes_each_piece_before_it_counts(through, flushes):
    class Counting(Recorder):
        flushed: list[int]

        async def flush(self) -> None:
            self.flushed.append(len(self.wrote))

    target = Counting(OLD * 3 * BUFFER)
    target.flushed = []
    play(
        Recorder(b"\x01" * 3 * BUFFER), target, script=copies(Extent(0, 3 * BUFFER)), write_through=through, requests=1
    )
    assert target.flushed == [1, 2, 3][:flushes]


def test_salvage_loses_the_bad_sectors_and_nothing_else():
    content = bytes(range(1, 251)) * 132
    source = Recorder(content)
    source.broken_at = 5 * SECTOR + 17
    target = Recorder(OLD * len(content))
    reports = play(source, target, script=copies(Extent(0, len(content))), salvage=True)
    assert reports.lost_ranges == [("Input/output error", [(5 * SECTOR, SECTOR)])]
    assert target.content == content[: 5 * SECTOR] + bytes(SECTOR) + content[6 * SECTOR :]
    assert len(source.read) < 20, "halving finds the sector; it is not one request for each"


def test_salvage_does_not_hide_a_lost_connection():
    class Lost(Recorder):
        async def read_into(self, offset: int, buffer: memoryview) -> None:
            raise self.error(Retryable, "reading", offset, "the connection to the server was lost")

    with pytest.raises(Retryable, match="connection to the server was lost"):
        play(Lost(b"\x01" * BUFFER), Recorder(OLD * BUFFER), script=copies(Extent(0, BUFFER)), salvage=True)


class Copying(Recorder):
    """A store that copies by itself up to a byte, and no further."""

    copies_to = 1 << 60

    async def copy_from(self, source: Transport, source_offset: int, offset: int, length: int) -> bool:
        assert isinstance(source, Recorder)
        if offset + length > self.copies_to:
            return False
        self._store[offset : offset + length] = source.content[source_offset : source_offset + length]
        return True


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("limit", [1 << 60, 2 * BUFFER, 0])
def test_what_the_target_cannot_copy_itself_is_read_and_written(limit, in_order):
    content = b"\x01" * 4 * BUFFER + b"\x02" * 700
    source, target = Recorder(content), Copying(OLD * (4 * BUFFER + 1024))
    target.copies_to = limit
    reports = play(
        source, target, script=copies(Extent(0, 4 * BUFFER + 1024)), offload=True, in_order=in_order, requests=1
    )
    assert target.content == content + bytes(324)
    read = sum(length for _, length in source.read)
    assert read == len(content) - min(limit, 4 * BUFFER)
    assert len(reports.words) == (limit < 1 << 60)


def test_how_zeros_are_made_is_said_once():
    size = 3 * BUFFER
    reports = play(Recorder(bytes(size)), Recorder(OLD * size), script=copies(Extent(0, size)), sparse_size=4 * KiB)
    assert reports.words == ["zeros on 'memory:recorder': zeros are written"]


@pytest.mark.parametrize(("ordered", "through", "together"), [(False, False, 1), (True, False, 4), (True, True, 1)])
def test_in_order_a_connection_that_keeps_the_order_takes_a_few_pieces_at_a_time(ordered, through, together):
    """They are sent ascending all the same, also where zeros between them take other requests."""
    block = b"\x01" * 4 * KiB
    content = (block * 2) * 6 + (block + bytes(4 * KiB)) * 3 + (bytes(4 * KiB) + block) * 3
    target = Recorder(OLD * len(content))
    target.ordered = ordered
    play(
        Recorder(content),
        target,
        script=copies(Extent(0, len(content))),
        in_order=True,
        requests=8,
        write_through=through,
    )
    assert target.content == content
    assert target.wrote == sorted(target.wrote)
    assert target.most_under_way == together


def test_what_a_failed_copy_left_is_not_taken_for_zeros():
    class Spoiling(Copying):
        copy_may_spoil = True

        async def copy_from(self, source: Transport, source_offset: int, offset: int, length: int) -> bool:
            self._store[offset : offset + length] = b"\xee" * length
            return False

    content = b"\x01" * 4 * KiB + bytes(4 * KiB)
    target = Spoiling(bytes(len(content)))
    play(Recorder(content), target, script=copies(Extent(0, len(content))), offload=True, zero_initialised=True)
    assert target.content == content
