"""Several targets of one job: each is written as if it were alone, and one that fails is left out."""

from __future__ import annotations

import asyncio

import pytest

from mpconv.model.errors import Fatal, MpconvError, Retryable
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import KiB
from mpconv.workers.targets import DroppableTarget, both
from tests.workers.test_copier import BUFFER, OLD, Recorder, Scene, copies, play, settle

PIECES = 12
MIXED = b"".join(bytes([number]) * 4 * KiB + bytes(4 * KiB) for number in range(1, PIECES + 1))


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_target_gets_everything_and_in_order_ascending(in_order, ordered):
    targets = [Recorder(OLD * len(MIXED), can_zero=number < 2) for number in range(3)]
    for target in targets:
        target.ordered = ordered
    source = Recorder(MIXED)
    reports = play(source, *targets, script=copies(Extent(0, len(MIXED))), in_order=in_order)
    assert reports.finished[0].zeros == len(MIXED) // 2
    assert sum(length for _, length in source.read) == len(MIXED), "it is read once"
    for target in targets:
        assert target.content == MIXED
        if in_order:
            assert target.wrote == sorted(target.wrote)


def test_a_slow_target_holds_up_the_others_by_the_buffers_and_no_more():
    class Slow(Recorder):
        gate: asyncio.Event

        async def write(self, offset: int, buffer: memoryview) -> None:
            await self.gate.wait()
            await super().write(offset, buffer)

    size, requests = PIECES * BUFFER, 4
    fast, slow = Recorder(OLD * size), Slow(OLD * size)

    async def run() -> None:
        slow.gate = asyncio.Event()
        scene = Scene(Recorder(b"\x01" * size), fast, slow, requests=requests)

        async def script(scene: Scene) -> None:
            copying = asyncio.ensure_future(copies(Extent(0, size))(scene))
            await settle()
            assert len(fast.wrote) == requests
            slow.gate.set()
            await copying

        await scene.play(script)

    asyncio.run(run())
    assert fast.content == slow.content == b"\x01" * size


class Failures:
    """What was told of branches. What may pass by makes everything begin anew."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def __call__(self, number: int, error: MpconvError) -> bool:
        self.told.append((number, error.why))
        return not isinstance(error, Retryable)


def test_a_branch_that_fails_for_good_ends_nothing():
    size = PIECES * BUFFER
    failures = Failures()
    stores = [Recorder(OLD * size) for _ in range(3)]
    stores[1].broken_at = 3 * BUFFER
    branches = [DroppableTarget(number, store, failures, reads_zeros=False) for number, store in enumerate(stores)]
    play(Recorder(b"\x01" * size), *branches, script=copies(Extent(0, size)))
    assert failures.told == [(1, "Input/output error")]
    assert stores[0].content == stores[2].content == b"\x01" * size


def test_of_a_branch_that_is_dropped_nothing_is_asked():
    store = Recorder(OLD * BUFFER)
    failures = Failures()

    async def run() -> None:
        branch = DroppableTarget(0, store, failures, reads_zeros=False)
        await branch.drop()
        await branch.write(0, memoryview(bytes(512)))
        assert await branch.zero(0, 512)
        await branch.flush()

    asyncio.run(run())
    assert (store.wrote, store.zeroed, failures.told) == ([], [], [])
    assert store.content == OLD * BUFFER


def test_what_is_under_way_when_a_branch_is_dropped_counts_as_done():
    class Stuck(Recorder):
        closed: asyncio.Event

        async def write(self, offset: int, buffer: memoryview) -> None:
            await self.closed.wait()
            raise self.error(Retryable, "writing", offset, "the connection is closed")

        async def close(self) -> None:
            self.closed.set()

    failures = Failures()

    async def run() -> None:
        stuck = Stuck(OLD * BUFFER)
        stuck.closed = asyncio.Event()
        branch = DroppableTarget(0, stuck, failures, reads_zeros=False)
        writing = asyncio.ensure_future(branch.write(0, memoryview(bytes(512))))
        await asyncio.sleep(0)
        await branch.drop()
        await writing

    asyncio.run(run())
    assert failures.told == []


def test_a_lost_connection_comes_through():
    class Lost(Recorder):
        async def write(self, offset: int, buffer: memoryview) -> None:
            raise self.error(Retryable, "writing", offset, "the connection to the server was lost")

    failures = Failures()
    branches = [DroppableTarget(0, Recorder(OLD * 512), failures, reads_zeros=False)]
    branches.append(DroppableTarget(1, Lost(OLD * 512), failures, reads_zeros=False))
    with pytest.raises(Retryable, match="connection to the server was lost"):
        play(Recorder(b"\x01" * 512), *branches, script=copies(Extent(0, 512)))
    assert failures.told == [(1, "the connection to the server was lost")]


def test_zeros_are_made_only_where_they_are_not_there():
    old, new = Recorder(OLD * len(MIXED)), Recorder(bytes(len(MIXED)))
    failures = Failures()
    branches = [
        DroppableTarget(0, old, failures, reads_zeros=False),
        DroppableTarget(1, new, failures, reads_zeros=True),
    ]
    script = copies(Extent(0, len(MIXED) - BUFFER), Extent(len(MIXED) - BUFFER, BUFFER, Kind.ZERO))
    play(Recorder(MIXED), *branches, script=script)
    assert old.content == new.content == MIXED[:-BUFFER] + bytes(BUFFER)
    assert len(old.zeroed) == PIECES and new.zeroed == []


def test_when_zeros_are_asked_for_as_bytes_all_get_them():
    stores = [Recorder(bytes(BUFFER)) for _ in range(2)]
    branches = [DroppableTarget(number, store, Failures(), reads_zeros=True) for number, store in enumerate(stores)]
    play(Recorder(bytes(BUFFER)), *branches, script=copies(Extent(0, BUFFER)), sparse_size=0)
    assert [store.wrote for store in stores] == [[(0, BUFFER)]] * 2


def test_a_failed_flush_is_the_branch_s_own():
    class Broken(Recorder):
        async def flush(self) -> None:
            raise self.error(Fatal, "flushing", 0, "Input/output error")

    failures = Failures()
    asyncio.run(DroppableTarget(4, Broken(OLD), failures, reads_zeros=False).flush())
    assert failures.told == [(4, "Input/output error")]


def test_both_begin_at_once_and_the_first_ones_error_goes_before_the_seconds():
    async def scenario() -> None:
        meeting = asyncio.Barrier(2)

        async def come(number: int, error: MpconvError | None) -> int:
            async with asyncio.timeout(10):
                await meeting.wait()
            if number == 1:
                await asyncio.sleep(0)  # the second one fails first
            if error is not None:
                raise error
            return number

        assert await both(come(1, None), come(2, None)) == (1, 2)
        for first, second, raised in (
            (Fatal("the first"), Fatal("the second"), "the first"),
            (None, Fatal("the second"), "the second"),
            (Fatal("the first"), None, "the first"),
        ):
            with pytest.raises(Fatal, match=raised):
                await both(come(1, first), come(2, second))

    asyncio.run(scenario())
