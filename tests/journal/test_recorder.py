"""How what is new reaches the journal while a copy runs, and when places may be used."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mpconv.journal.recorder import Recorder
from mpconv.journal.records import Checkpoint, Happening, State
from mpconv.model.digest import REGION
from mpconv.model.errors import Fatal, Interrupted, StatusWithdrawn
from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import Ranges

MiB = 1 << 20


class Held:
    """A journal whose commits wait until they are let go; the checkpoints that were committed."""

    path = "j.db"

    def __init__(self) -> None:
        self.committed: list[Checkpoint] = []
        self.go = threading.Semaphore(0)
        self.under_way = 0
        self.most_under_way = 0
        self.error: Fatal | None = None

    def commit(self, checkpoint: Checkpoint) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.go.acquire()
        self.under_way -= 1
        if self.error is not None:
            raise self.error
        self.committed.append(checkpoint)

    def begin_anew(self, course: str | None, happened: list[Happening]) -> None:
        self.anew = happened


class Rising:
    """Entries of a target that grows."""

    def __init__(self) -> None:
        self.end = 0
        self.marked: list[Extent] = []

    def mark(self, extent: Extent) -> None:
        self.marked.append(extent)

    def changed(self, done: Ranges) -> dict[int, bytes]:
        marked, self.marked = self.marked, []
        return {extent.start: b"" for extent in marked}


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_one_commit_at_a_time_and_what_comes_meanwhile_goes_into_the_next():
    async def run() -> None:
        journal = Held()
        recorder = Recorder(journal, 100, done=Ranges())
        recorder.durable([Extent(0, 10)], 1)
        await until(lambda: journal.under_way == 1)
        recorder.passed(Extent(10, 10, Kind.ZERO))
        recorder.durable([Extent(20, 10), Extent(40, 10)], 2)
        journal.go.release(2)
        await until(lambda: len(journal.committed) == 2)
        assert [one.ranges for one in journal.committed] == [[(0, 10)], [(0, 30), (40, 50)]]
        assert [one.zeros for one in journal.committed] == [1, 13]
        assert journal.most_under_way == 1

    asyncio.run(run())


def test_sums_go_with_what_they_are_of_and_those_of_an_earlier_run_go_on():
    async def run() -> None:
        journal = Held()
        journal.go.release(9)
        recorder = Recorder(journal, 8 * REGION, done=Ranges(), digests={1: number(7)}, entries=Rising())
        recorder.durable([Extent(REGION, 2 * REGION)], 0, [(REGION, number(3) + number(4))])
        await recorder.settle()
        recorder.durable([Extent(5 * REGION, REGION)], 0, [(5 * REGION, number(5))])
        await recorder.settle()
        found = [one.digests for one in journal.committed if one.ranges]
        assert found == [{1: number(10), 2: number(4)}, {5: number(5)}]
        assert recorder.digests.total == 19

    asyncio.run(run())


def number(value: int) -> bytes:
    return value.to_bytes(16, "little")


def test_what_nobody_writes_waits_for_the_next_commit():
    async def run() -> None:
        journal = Held()
        journal.go.release(9)
        recorder = Recorder(journal, 100, done=Ranges(), entries=Rising())
        recorder.passed(Extent(0, 10, Kind.ZERO))
        await asyncio.sleep(0)
        assert not journal.committed and not journal.under_way
        await recorder.settle()
        assert [one.ranges for one in journal.committed] == [[(0, 10)]]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "state", "kind"),
    [
        (None, State.FINISHED, "finished"),
        (Fatal("no space"), State.FAILED, "failed"),
        (Interrupted(2), State.STOPPED, "stopped"),
        (asyncio.CancelledError(), State.STOPPED, "stopped"),
    ],
)
def test_how_it_ended_is_the_last_commit(error, state, kind):
    journal = Held()

    async def run() -> None:
        journal.go.release(9)
        async with Recorder(journal, 100, done=Ranges()):
            if error is not None:
                raise error

    if error is None:
        asyncio.run(run())
    else:
        with pytest.raises(type(error)):
            asyncio.run(run())
    assert [(one.state, [x.kind for x in one.happened]) for one in journal.committed] == [(state, [kind])]


def test_when_the_source_lied_nothing_counts_any_more():
    journal = Held()

    async def run() -> None:
        async with Recorder(journal, 100, done=Ranges()) as recorder:
            recorder.passed(Extent(0, 10, Kind.ZERO))
            recorder.durable([Extent(10, 10)], 0)
            await until(lambda: journal.under_way == 1)
            asyncio.get_running_loop().call_soon(journal.go.release)
            recorder.passed(Extent(20, 10, Kind.ZERO))
            raise StatusWithdrawn("it has data there")

    with pytest.raises(StatusWithdrawn):
        asyncio.run(run())
    assert [(one.kind, one.text) for one in journal.anew] == [("began anew", "it has data there")]
    assert all((20, 30) not in one.ranges for one in journal.committed), "no commit behind it"


def test_a_journal_that_cannot_be_written_is_told_of_once():
    async def run() -> None:
        journal = Held()
        journal.error = Fatal("error while writing the journal 'j.db': database or disk is full")
        journal.go.release(9)
        told: list[Exception] = []
        recorder = Recorder(journal, 100, done=Ranges())
        recorder.on_failure = told.append
        recorder.durable([Extent(0, 10)], 0)
        await until(lambda: told)
        recorder.durable([Extent(10, 10)], 0)
        with pytest.raises(Fatal, match="database or disk is full"):
            await recorder.settle()
        assert len(told) == 1

    asyncio.run(run())


def test_places_are_used_only_below_what_the_journal_says():
    async def run() -> None:
        journal, entries, room = Held(), Rising(), []
        recorder = Recorder(journal, 1 << 30, done=Ranges(), places=5 * MiB, entries=entries)
        recorder.on_room = lambda: room.append(journal.committed[-1].places)
        entries.end = 6 * MiB
        assert not recorder.may_use(6 * MiB)
        journal.go.release()
        await until(lambda: room)
        assert recorder.may_use(6 * MiB)
        told = room[-1]
        assert told > 6 * MiB
        entries.end = told
        assert recorder.may_use(told), "it was told beforehand"
        await until(lambda: journal.under_way == 1)
        entries.end = told + 1
        assert not recorder.may_use(told + 1)
        journal.go.release(2)
        await recorder.settle()
        assert journal.committed[-1].places == told + 1, "nothing is under way: the next run need not leave a gap"

    asyncio.run(run())


def test_where_each_byte_has_its_place_nothing_waits():
    recorder = Recorder(Held(), 1 << 30, done=Ranges(), entries=Rising())
    assert recorder.may_use(1 << 29)
    assert Recorder(Held(), 1 << 30, done=Ranges()).may_use(1 << 29)
