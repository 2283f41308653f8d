"""Garbage on the coordinator's socket and on the workers': dropped and counted, and the copy is unharmed."""

from __future__ import annotations

import asyncio
import itertools

import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.coordination.observer import Observer
from mpconv.coordinator import Coordinator
from mpconv.model.errors import ProtocolError
from mpconv.protocol import messages
from mpconv.protocol.codec import MAX_FRAME, decode_from_coordinator, decode_from_worker, encode
from mpconv.transports import connect
from mpconv.transports.base import Access
from mpconv.workers.launch.provider import Ended
from tests.coordination.test_worker_death import CONTENT, SIZE, Threads, store
from tests.workers.test_copier import job

REAL = [
    messages.Hello(messages.VERSION, 1),
    messages.Want(3),
    messages.Ready(1, 1),
    messages.Done(1, 1, 0),
    messages.Failed(1, "why", "reading", "image", 7),
    messages.FlushDone(1),
    messages.LeaseGrant(1, 1, 0, 4096, 0, True),
    messages.Token(1, 1),
    messages.Flush(1),
    messages.Bye(),
]


def is_message(frame: bytes) -> bool:
    for decode in (decode_from_worker, decode_from_coordinator):
        try:
            decode(frame)
        except ProtocolError:
            continue
        return True
    return False


def spoilt(draw: st.DrawFn) -> bytes:
    frame = bytearray(encode(draw(st.sampled_from(REAL))))
    for _ in range(draw(st.integers(1, 4))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(0, len(frame)))])


garbage = st.one_of(st.binary(max_size=64), st.composite(spoilt)(), st.just(bytes(MAX_FRAME + 1))).filter(
    lambda frame: not is_message(frame)
)


class Disturbed(Coordinator):
    """Every message to a worker is followed by garbage."""

    def __init__(self, *arguments: object, frames: list[bytes], **options: object) -> None:
        super().__init__(*arguments, **options)
        self.frames = itertools.cycle(frames)
        self.spoken = 0

    def _send(self, name: str, message: messages.FromCoordinator) -> None:
        super()._send(name, message)
        self._link.send(name.encode("latin-1"), next(self.frames))
        self.spoken += 1


class WithAStranger(Threads):
    """Workers, each message of which is followed by garbage; and a peer nobody started, which says what it likes."""

    def __init__(self, frames: list[bytes], strange: list[bytes]) -> None:
        super().__init__([], 0, 0)
        self.frames, self.strange = frames, strange

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        for frame in self.strange:
            self.socket.send(frame)
        started = super().start(count, endpoint, ended)
        for worker in self.workers:
            noise = itertools.cycle(self.frames)

            def send(message: messages.FromWorker, plain=worker._send, worker=worker, noise=noise) -> None:
                plain(message)
                worker._link.send(next(noise))

            worker._send = send
        return started

    async def stop(self, grace: float) -> None:
        await super().stop(grace)
        self.socket.close()
        self.context.term()


@given(
    to_workers=st.lists(garbage, min_size=1, max_size=8),
    to_coordinator=st.lists(garbage, min_size=1, max_size=8),
    in_order=st.booleans(),
)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_garbage_is_dropped_and_counted_and_the_copy_unharmed(to_workers, to_coordinator, in_order):
    async def run() -> bytes:
        source, target = (
            await store("memory:source", CONTENT),
            await connect("memory:target", Access.WRITE, create_size=SIZE),
        )
        strange = [*to_coordinator, *map(encode, REAL[1:6])]
        crew = WithAStranger(to_coordinator, strange)
        todo = job(SIZE, in_order=in_order, requests=4)
        coordinator = Disturbed(todo, source, crew, 2, Observer(), frames=to_workers)
        async with asyncio.timeout(20):
            await coordinator.run()
        assert coordinator._link.dropped >= len(to_coordinator)
        assert sum(worker._link.dropped for worker in crew.workers) > 0
        content = bytearray(SIZE)
        await target.read_into(0, memoryview(content))
        return bytes(content)

    assert asyncio.run(run()) == CONTENT
