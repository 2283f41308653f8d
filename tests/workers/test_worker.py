"""A worker by its messages, without a link: what a dead worker held comes back below what this one already has."""

from __future__ import annotations

import asyncio

import pytest

from mpconv.model.extent import Extent, Kind
from mpconv.protocol import messages
from mpconv.transports import connect
from mpconv.transports.base import Access
from mpconv.workers.worker import Worker
from tests.workers.test_copier import BUFFER, job

CONTENT = b"".join(bytes([number]) * BUFFER for number in range(1, 17))


class Told(Worker):
    """What it says is kept; a test waits for it."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.sent: list[messages.FromWorker] = []
        self._news = asyncio.Event()

    def _send(self, message: messages.FromWorker) -> None:
        self.sent.append(message)
        self._news.set()

    async def says(self, message: messages.FromWorker) -> None:
        while message not in self.sent:
            assert not [said for said in self.sent if isinstance(said, messages.Failed)], self.sent
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)

    def hears(self, *heard: messages.FromCoordinator) -> None:
        for message in heard:
            self._inbox.put_nowait(message)

    async def settle(self) -> None:
        """All that can go on goes on."""
        for _ in range(50):
            await asyncio.sleep(0)

    def end(self) -> None:
        for task in self._serving | self._working:
            task.cancel()


def lease(epoch: int, first: int, count: int) -> messages.LeaseGrant:
    extent = Extent(first * BUFFER, count * BUFFER)
    return messages.LeaseGrant(1, epoch, extent.start, extent.length, int(Kind.DATA), False)


async def opened(requests: int) -> tuple[Told, bytearray]:
    source = await connect("memory:source", Access.WRITE, create_size=len(CONTENT))
    await source.write(0, CONTENT)
    target = await connect("memory:target", Access.WRITE, create_size=len(CONTENT))
    worker = Told()
    worker._spawn(worker._obey(), worker._serving)
    worker.hears(messages.Open(job(len(CONTENT), in_order=True, requests=requests)))
    await worker.says(messages.Want(2))
    return worker, target._store


@pytest.mark.parametrize("requests", [1, 3, 8])
@pytest.mark.parametrize("ahead", [1, 4])
def test_a_lower_lease_that_comes_late_is_written_first(requests, ahead):
    """Every coroutine may wait with a piece of the higher leases, which get their tokens only afterwards."""

    async def run() -> None:
        worker, target = await opened(requests)
        worker.hears(lease(1, 16 - 2 * ahead, ahead), lease(2, 16 - ahead, ahead))
        await worker.says(messages.Ready(1, 1))
        await worker.settle()
        below = 16 - 2 * ahead
        worker.hears(lease(3, 0, below))
        await worker.says(messages.Ready(1, 3))
        worker.hears(messages.Token(1, 3))
        await worker.says(messages.Done(1, 3, 0))
        assert target == CONTENT[: below * BUFFER] + bytes(2 * ahead * BUFFER)
        for epoch in (1, 2):
            await worker.says(messages.Ready(1, epoch))
            worker.hears(messages.Token(1, epoch))
            await worker.says(messages.Done(1, epoch, 0))
        assert target == CONTENT
        worker.end()

    asyncio.run(run())


@pytest.mark.parametrize("requests", [1, 3])
def test_what_may_be_written_goes_on_before_a_lower_lease_that_comes_late(requests):
    """That one gets its token only when the higher one is done."""

    async def run() -> None:
        worker, target = await opened(requests)
        worker.hears(lease(1, 8, 8))
        await worker.says(messages.Ready(1, 1))
        worker.hears(messages.Token(1, 1), lease(2, 0, 8))
        await worker.says(messages.Done(1, 1, 0))
        await worker.says(messages.Ready(1, 2))
        worker.hears(messages.Token(1, 2))
        await worker.says(messages.Done(1, 2, 0))
        assert target == CONTENT
        worker.end()

    asyncio.run(run())


@pytest.mark.parametrize("requests", [1, 3])
def test_leases_that_come_back_one_below_the_other(requests):
    """As when one worker after the other dies."""

    async def run() -> None:
        worker, target = await opened(requests)
        for epoch in range(1, 5):
            worker.hears(lease(epoch, 16 - 4 * epoch, 4))
            await worker.says(messages.Ready(1, epoch))
            await worker.settle()
        for epoch in range(4, 0, -1):
            worker.hears(messages.Token(1, epoch))
            await worker.says(messages.Done(1, epoch, 0))
            assert target == CONTENT[: (20 - 4 * epoch) * BUFFER] + bytes((4 * epoch - 4) * BUFFER)
        worker.end()

    asyncio.run(run())


def test_many_small_leases_that_come_back_take_one_buffer_more():
    """All of them lie below what the only coroutine holds; one more coroutine takes them, one after the other."""

    async def run() -> None:
        worker, target = await opened(1)
        worker.hears(lease(1, 12, 4))
        await worker.says(messages.Ready(1, 1))
        await worker.settle()
        tasks = len(worker._working)
        for epoch in range(2, 14):
            worker.hears(lease(epoch, epoch - 2, 1))
        await worker.settle()
        assert len(worker._working) == tasks + 1
        for epoch in (*range(2, 14), 1):
            await worker.says(messages.Ready(1, epoch))
            worker.hears(messages.Token(1, epoch))
            await worker.says(messages.Done(1, epoch, 0))
        await worker.settle()
        assert len(worker._working) == tasks, "it ends with what it was started for"
        assert target == CONTENT
        worker.end()

    asyncio.run(run())


def test_a_lease_with_its_token_follows_those_that_came_before():
    """In order alone, the coordinator hands out ascending leases and no tokens."""

    async def run() -> None:
        worker, target = await opened(3)
        for epoch, (first, count) in enumerate([(0, 5), (5, 1), (6, 10)], 1):
            granted = lease(epoch, first, count)
            worker.hears(messages.LeaseGrant(1, epoch, granted.start, granted.length, granted.kind, True))
        for epoch in (1, 2, 3):
            await worker.says(messages.Done(1, epoch, 0))
        done = [said.epoch for said in worker.sent if isinstance(said, messages.Done)]
        assert (done, bytes(target)) == ([1, 2, 3], CONTENT)
        worker.end()

    asyncio.run(run())
