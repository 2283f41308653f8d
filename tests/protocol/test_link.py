"""Links over real ZeroMQ sockets on ipc."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import zmq

from mpconv.protocol.link import Link

PATIENCE = 30
MANY = 10_000


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path / 'link'}"


class Received(list):
    """Messages as they arrive; `until(n)` waits for the n-th."""

    def __init__(self, then: Callable[[list[bytes]], None] | None = None) -> None:
        super().__init__()
        self.then = then
        self._goal = 0
        self._reached = asyncio.Event()

    def __call__(self, frames: list[bytes]) -> None:
        self.append(frames)
        if self.then is not None:
            self.then(frames)
        if len(self) >= self._goal:
            self._reached.set()

    async def until(self, count: int) -> None:
        self._goal = count
        if len(self) < count:
            self._reached.clear()
            async with asyncio.timeout(PATIENCE):
                await self._reached.wait()


def bound(context: zmq.Context, endpoint: str, receive: Callable[[list[bytes]], None]) -> Link:
    link = Link(context, zmq.ROUTER, receive)
    link.socket.bind(endpoint)
    link.start()
    return link


def connected(context: zmq.Context, endpoint: str, receive: Callable[[list[bytes]], None]) -> Link:
    link = Link(context, zmq.DEALER, receive)
    link.socket.connect(endpoint)
    link.start()
    return link


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def test_bursts_both_ways_at_once_arrive_whole_and_in_order(context, endpoint):
    async def run():
        at_router, at_dealer = Received(), Received()
        router = bound(context, endpoint, at_router)
        dealer = connected(context, endpoint, at_dealer)
        dealer.send(b"hello")
        await at_router.until(1)
        name = at_router[0][0]
        for body in numbered(MANY):
            router.send(name, body)
            dealer.send(body)
        await at_router.until(1 + MANY)
        await at_dealer.until(MANY)
        assert [frames[-1] for frames in at_router[1:]] == numbered(MANY)
        assert {frames[0] for frames in at_router} == {name}
        assert at_dealer == [[body] for body in numbered(MANY)]
        router.close()
        dealer.close()

    asyncio.run(run())


def test_answers_from_within_receive_never_stall(context, endpoint):
    """Each answer is sent while the socket is being drained: the moment at which an edge is easily lost."""

    async def run():
        router: Link

        def echo(frames: list[bytes]) -> None:
            router.send(*frames)

        def again(frames: list[bytes]) -> None:
            if int(frames[0]) < MANY:
                dealer.send(b"%d" % (int(frames[0]) + 1))

        at_dealer = Received(again)
        router = bound(context, endpoint, echo)
        dealer = connected(context, endpoint, at_dealer)
        dealer.send(b"1")
        await at_dealer.until(MANY)
        assert at_dealer[-1] == [b"%d" % MANY]
        router.close()
        dealer.close()

    asyncio.run(run())


def test_many_dealers_are_told_apart(context, endpoint):
    async def run():
        at_router = Received()
        router = bound(context, endpoint, at_router)
        ears = [Received() for _ in range(20)]
        dealers = [connected(context, endpoint, ear) for ear in ears]
        for number, dealer in enumerate(dealers):
            dealer.send(b"%d" % number)
        await at_router.until(len(dealers))
        for name, body in list(at_router):
            router.send(name, b"to " + body)
        for number, ear in enumerate(ears):
            await ear.until(1)
            assert ear == [[b"to %d" % number]]
        for link in (router, *dealers):
            link.close()

    asyncio.run(run())


def test_a_burst_does_not_keep_the_loop_from_other_work(context, endpoint):
    async def run():
        turns = 0
        at_router = Received()
        seen = []

        def turn() -> None:
            nonlocal turns
            turns += 1
            if len(at_router) < MANY:
                asyncio.get_running_loop().call_soon(turn)

        at_router.then = lambda _: seen.append(turns)
        router = Link(context, zmq.ROUTER, at_router)
        router.socket.bind(endpoint)
        with context.socket(zmq.DEALER) as sender:
            sender.setsockopt(zmq.SNDHWM, 0)
            sender.connect(endpoint)
            for body in numbered(MANY):
                sender.send(body)
            assert router.socket.poll(PATIENCE * 1000)
            router.start()
            turn()
            await at_router.until(MANY)
        assert max(seen.count(number) for number in set(seen)) < MANY / 4
        router.close()

    asyncio.run(run())


def test_a_receiver_that_raises_loses_only_its_own_message(context, endpoint):
    async def run():
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, facts: complaints.append(facts["exception"]))

        def fail_once(frames: list[bytes]) -> None:
            if frames[-1] == b"3":
                raise ValueError("three")

        at_router = Received(fail_once)
        router = bound(context, endpoint, at_router)
        dealer = connected(context, endpoint, lambda frames: None)
        for body in numbered(1000):
            dealer.send(body)
        await at_router.until(1000)
        assert [frames[-1] for frames in at_router] == numbered(1000)
        assert [str(complaint) for complaint in complaints] == ["three"]
        router.close()
        dealer.close()

    asyncio.run(run())


def test_close_with_linger_sends_what_is_queued(context, endpoint):
    async def run():
        at_router = Received()
        router = bound(context, endpoint, at_router)
        dealer = connected(context, endpoint, lambda frames: None)
        for body in numbered(MANY):
            dealer.send(body)
        dealer.close(linger_ms=PATIENCE * 1000)
        await at_router.until(MANY)
        assert [frames[-1] for frames in at_router] == numbered(MANY)
        router.close()

    asyncio.run(run())


def test_close_while_queued_for_nobody_does_not_hang_and_later_sends_are_dropped(endpoint):
    async def run():
        context = zmq.Context()
        dealer = connected(context, endpoint, lambda frames: None)
        for body in numbered(100):
            dealer.send(body)
        dealer.close()
        dealer.close()
        dealer.send(b"after")
        await asyncio.wait_for(asyncio.to_thread(context.term), PATIENCE)

    asyncio.run(run())


def test_close_from_within_receive_delivers_nothing_more(context, endpoint):
    async def run():
        at_router = Received(lambda _: router.close())
        router = bound(context, endpoint, at_router)
        dealer = connected(context, endpoint, lambda frames: None)
        for body in numbered(100):
            dealer.send(body)
        await at_router.until(1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(at_router) == 1
        dealer.close()

    asyncio.run(run())


def test_a_message_to_an_unknown_peer_is_dropped(context, endpoint):
    async def run():
        at_router = Received()
        router = bound(context, endpoint, at_router)
        router.send(b"nobody", b"lost")
        dealer = connected(context, endpoint, lambda frames: None)
        dealer.send(b"hello")
        await at_router.until(1)
        router.close()
        dealer.close()

    asyncio.run(run())
