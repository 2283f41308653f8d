"""The real coordinator and real workers over real links, in one process: they die or lose their target as tests say."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.coordination.observer import Observer
from mpconv.coordinator import Coordinator
from mpconv.formats.raw import RawImage
from mpconv.jobs.image_pair import Pair
from mpconv.model.digest import BLOCK, text
from mpconv.model.errors import Retryable, WorkerLost
from mpconv.model.extent import Extent
from mpconv.model.place import Place
from mpconv.protocol import messages
from mpconv.transports import connect
from mpconv.transports.base import Access
from mpconv.workers.launch.provider import Ended, WorkerProvider
from mpconv.workers.lease_queue import HeldLease
from mpconv.workers.worker import Worker
from tests.support.digests import digest_of
from tests.workers.test_copier import BUFFER, job

SIZE = 64 * BUFFER
CONTENT = b"".join(bytes([number]) * BUFFER for number in range(1, 65))


class Mortal(Worker):
    """Dies after `last` messages, when it would send the next; None: never. With `power_cuts`, it lives on, and its
    target loses what it did not flush, as often as that says.
    """

    def __init__(self, endpoint: str, pid: int, last: int | None, ended: Ended, power_cuts: int = 0) -> None:
        super().__init__(endpoint, None)
        self.pid = pid
        self.power_cuts = power_cuts
        self.silently = False
        self._last = self._left = last
        self._ended = ended
        self._unflushed: list[Extent] = []
        self.alive = True

    def _send(self, message: messages.FromWorker) -> None:
        if not self.alive:
            return
        if self._left == 0 and self.power_cuts and self._copier is not None:
            self.power_cuts -= 1
            self._left = self._last if self.power_cuts else None
            self.lose_the_target()
            return
        if self._left == 0 and not self.power_cuts:
            self.fall_silent() if self.silently else self.die()
            return
        if self._left:
            self._left -= 1
        if isinstance(message, messages.Hello):
            self._unflushed.clear()
            message = messages.Hello(message.version, self.pid)
        super()._send(message)

    def done(self, lease: HeldLease) -> None:
        self._unflushed.append(lease.extent)
        super().done(lease)

    async def _flush(self, job_id: int) -> None:
        covered = len(self._unflushed)
        await super()._flush(job_id)
        del self._unflushed[:covered]

    def lose_the_target(self) -> None:
        for target in self._targets:
            store = getattr(target, "_inner", target)._store
            for extent in self._unflushed:
                store[extent.start : extent.end] = (b"\xee" * extent.length)[: max(0, len(store) - extent.start)]
        self._report(target.error(Retryable, "writing", 0, "the connection to the server was lost"))

    def fall_silent(self) -> None:
        """As if its process were stopped: nothing is heard of it, and nothing is done."""
        self.alive = False
        for task in self._serving | self._working:
            task.cancel()

    def die(self) -> None:
        self.alive = False
        loop = asyncio.get_running_loop()
        loop.call_soon(self._over.set)
        loop.call_soon(self._ended, self.pid, -9)


class Threads(WorkerProvider):
    """In place of worker processes: `deaths` says after how many messages each that is started dies; None: never.
    `power_cuts`: as Mortal's; `stillborn`: so many of those that replace others die as they are forked.
    """

    def __init__(self, deaths: list[int | None], stillborn: int, power_cuts: int) -> None:
        self.stillborn = stillborn
        self.power_cuts = power_cuts
        self.pids = itertools.count(1)
        self.deaths = iter(deaths)
        self.workers: list[Mortal] = []
        self.killed: list[int] = []
        self.silently = False
        self.serving: list[asyncio.Task[None]] = []

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        if self.workers and self.stillborn:
            self.stillborn -= 1
            raise WorkerLost("a worker process could not be started: Broken pipe")
        new = [Mortal(endpoint, next(self.pids), next(self.deaths, None), ended, self.power_cuts) for _ in range(count)]
        for worker in new:
            worker.silently = self.silently
        self.workers += new
        self.serving += [asyncio.ensure_future(worker.serve()) for worker in new]
        return [worker.pid for worker in new]

    def kill(self, pid: int) -> None:
        [worker] = [worker for worker in self.workers if worker.pid == pid]
        self.killed.append(pid)
        worker.die()

    async def stop(self, grace: float) -> None:
        for worker in self.workers:
            worker._over.set()
        await asyncio.gather(*self.serving)


class Heard(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


async def store(name: str, content: bytes) -> RawImage:
    made = await connect(name, Access.WRITE, create_size=len(content))
    await made.write(0, content)
    return RawImage(made)


def copied(
    deaths: list[int | None],
    count: int,
    *,
    pieces: int = 64,
    second: bytes = bytes(SIZE),
    rate: int = 0,
    stillborn: int = 0,
    power_cuts: int = 0,
    silently: bool = False,
    **options: object,
) -> tuple[bytes, Coordinator, Heard, Threads]:
    async def run() -> tuple[bytes, Coordinator, Heard, Threads]:
        size = pieces * BUFFER
        source, target = await store("memory:source", CONTENT[:size]), await store("memory:target", second[:size])
        crew, heard = Threads(deaths, stillborn, power_cuts), Heard()
        crew.silently = silently
        todo = job(size, **{"requests": 2 * count, "lease_size": 4 * BUFFER, **options})
        images = Pair(source, target) if todo.compare else source
        coordinator = Coordinator(todo, images, crew, count, heard, rate=rate)
        async with asyncio.timeout(20):
            await coordinator.run()
        content = bytearray(size)
        await target.read_into(0, memoryview(content))
        return bytes(content), coordinator, heard, crew

    return asyncio.run(run())


lives = st.lists(st.one_of(st.none(), st.integers(0, 40)), max_size=7).filter(
    lambda lasts: sum(last is not None for last in lasts) <= 3
)


@given(
    deaths=lives,
    count=st.integers(1, 4),
    in_order=st.booleans(),
    durable=st.booleans(),
    lease_size=st.sampled_from([BUFFER, 4 * BUFFER]),
    pieces=st.integers(1, 64),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_the_copy_is_whole_whoever_dies_and_when(deaths, count, in_order, durable, lease_size, pieces):
    """Up to the replacements that a job has at least; every worker may die, some before they say a word."""
    content, coordinator, heard, crew = copied(
        deaths, count, pieces=pieces, in_order=in_order, durable=durable, lease_size=lease_size
    )
    assert content == CONTENT[: pieces * BUFFER]
    assert coordinator.bytes_done == len(content)
    assert len(crew.workers) == count + len(heard.warnings)


@given(
    losses=st.lists(st.one_of(st.none(), st.integers(4, 40)), max_size=4),
    power_cuts=st.integers(1, 3),
    count=st.integers(1, 4),
    in_order=st.booleans(),
    lease_size=st.sampled_from([BUFFER, 4 * BUFFER]),
    pieces=st.integers(1, 64),
)
@settings(deadline=None, max_examples=80, derandomize=True)
def test_what_a_target_lost_that_was_not_flushed_is_written_again(
    losses, power_cuts, count, in_order, lease_size, pieces
):
    content, coordinator, heard, crew = copied(
        losses, count, pieces=pieces, in_order=in_order, lease_size=lease_size, power_cuts=power_cuts, retry_for=60.0
    )
    assert content == CONTENT[: pieces * BUFFER]
    assert coordinator.bytes_done == len(content)
    assert len(crew.workers) == count
    assert all("'memory:target' does not answer (the connection" in warning for warning in heard.warnings)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("last", [1, 4])
def test_who_falls_silent_is_killed_and_its_work_done_by_others(monkeypatch, in_order, last):
    monkeypatch.setattr("mpconv.coordination.process_roster.SILENT_SECONDS", 0.3)
    monkeypatch.setattr("mpconv.coordinator._TICK", 0.05)
    monkeypatch.setattr("mpconv.workers.worker._HEARTBEAT", 0.05)
    content, _, heard, crew = copied([None, last], 2, in_order=in_order, silently=True, rate=SIZE)
    assert content == CONTENT
    assert crew.killed == [2]
    assert ["was silent" in heard.warnings[0], "ended (signal 9)" in heard.warnings[1]] == [True, True]


DIGESTED = {"digest": True, "buffer_size": BLOCK, "retry_for": 60.0}
BLOCKS = SIZE // BUFFER


@given(
    deaths=lives,
    power_cuts=st.integers(0, 2),
    count=st.integers(1, 4),
    in_order=st.booleans(),
    durable=st.booleans(),
    buffers=st.integers(1, 4),
    pieces=st.integers(1, BLOCKS),
)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_the_digest_is_that_of_the_source_whoever_dies_and_when(
    deaths, power_cuts, count, in_order, durable, buffers, pieces
):
    """What is written again after a death counts once."""
    options = {"in_order": in_order, "durable": durable or bool(power_cuts), "lease_size": buffers * BLOCK, **DIGESTED}
    deaths = [None if last is None else last + 4 * bool(power_cuts) for last in deaths]
    content, coordinator, _, _ = copied(deaths, count, pieces=pieces, power_cuts=power_cuts, **options)
    assert text(len(content), coordinator.digests.total) == digest_of(CONTENT[: pieces * BUFFER])


@given(deaths=lives, count=st.integers(1, 4), pieces=st.integers(1, BLOCKS))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_the_digest_of_what_is_only_read(deaths, count, pieces):
    options = {"durable": False, "zero_initialised": True, "lease_size": 2 * BLOCK, "targets": [], **DIGESTED}
    content, coordinator, _, _ = copied(deaths, count, pieces=pieces, **options)
    assert not any(content), "nothing is written"
    assert text(len(content), coordinator.digests.total) == digest_of(CONTENT[: pieces * BUFFER])


@pytest.mark.parametrize("pieces", range(2, 7))
def test_near_the_end_the_last_leases_come_back_to_workers_that_hold_higher_ones(pieces):
    """There is nothing else to give to those that want; a worker's only coroutine waits for a later token."""
    for last in range(1, 9):
        for deaths in ([last], [None, last], [last, None, last]):
            content, *_ = copied(deaths, 2, pieces=pieces, in_order=True, requests=2, lease_size=BUFFER)
            assert content == CONTENT[: pieces * BUFFER]


@pytest.mark.parametrize("in_order", [True, False])
def test_with_a_rate_it_does_not_hang(in_order):
    content, *_ = copied([12, 14, 9], 2, in_order=in_order, rate=4 * SIZE)
    assert content == CONTENT


def test_a_worker_that_dies_takes_its_share_of_the_buffers_with_it_and_the_next_gets_it():
    """At a rate that leaves work for the one that comes late."""
    _, _, heard, crew = copied([None, 1, None, None], 3, requests=8, rate=SIZE)
    assert sorted(worker._job.requests for worker in crew.workers if worker.alive) == [2, 3, 3]
    assert heard.warnings == ["a worker process (pid 2) ended (signal 9): its work is done again by others"]


@pytest.mark.parametrize(("count", "replacements"), [(1, 3), (2, 4)])
@pytest.mark.parametrize("last", [0, 1, 7])
def test_when_all_die_again_and_again_the_job_fails(count, replacements, last):
    with pytest.raises(WorkerLost, match=r"a worker process \(pid \d+\) ended before its work was done \(signal 9\)"):
        copied([last] * 100, count)
    with pytest.raises(WorkerLost):
        copied([last] * (count + replacements), count)


def test_a_replacement_that_dies_as_it_is_forked_is_one_of_those_that_there_may_be():
    assert copied([5], 1, stillborn=2)[0] == CONTENT
    with pytest.raises(WorkerLost, match="could not be started"):
        copied([5], 1, stillborn=3)


@pytest.mark.parametrize("deaths", [[], [8], [6, 7], [3, 9, 5]])
@pytest.mark.parametrize("different", [[], [40], [5, 9, 60], [0]])
def test_what_a_dead_worker_compared_is_compared_again(deaths, different):
    second = bytearray(CONTENT)
    for piece in different:
        second[piece * BUFFER + 17] ^= 0xFF
    _, coordinator, _, _ = copied(deaths, 2, second=bytes(second), compare=True, durable=False)
    assert coordinator.differs_at == (different[0] * BUFFER + 17 if different else None)


@given(
    deaths=lives,
    power_cuts=st.integers(0, 2),
    count=st.integers(1, 4),
    in_order=st.booleans(),
    short=st.integers(0, 63),
    first=st.booleans(),
)
@settings(deadline=None, max_examples=80, derandomize=True)
def test_a_target_that_fails_keeps_no_other_from_being_whole(deaths, power_cuts, count, in_order, short, first):
    """It has room for the first `short` pieces; who replaces a dead worker is told that it is dropped."""
    deaths = [None if last is None else last + 4 * bool(power_cuts) for last in deaths]

    async def run() -> tuple[Coordinator, list[bytes]]:
        source = await store("memory:source", CONTENT)
        sizes = [short * BUFFER, SIZE, SIZE] if first else [SIZE, SIZE, short * BUFFER]
        targets = [await store(f"memory:target{number}", b"\xa5" * size) for number, size in enumerate(sizes)]
        todo = job(
            SIZE,
            targets=[Place(url=f"memory:target{number}") for number in range(3)],
            reads_zeros=[False] * 3,
            in_order=in_order,
            requests=2 * count,
            lease_size=4 * BUFFER,
            retry_for=60.0,
            drop_after=60.0,
        )
        coordinator = Coordinator(todo, source, Threads(deaths, 0, power_cuts), count, Heard())
        async with asyncio.timeout(20):
            await coordinator.run()
        contents = []
        for target in targets:
            content = bytearray(target.size)
            await target.read_into(0, memoryview(content))
            contents.append(bytes(content))
        return coordinator, contents

    coordinator, contents = asyncio.run(run())
    assert set(coordinator.failed) == {0 if first else 2}
    assert [content for content in contents if len(content) == SIZE] == [CONTENT, CONTENT]
    assert coordinator.bytes_done == SIZE
