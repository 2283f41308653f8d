"""The coordinator against peers that break the rules, over real links."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from mpconv.coordination.observer import Observer
from mpconv.coordinator import Coordinator
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.raw import RawImage
from mpconv.model.errors import Fatal, WorkerLost
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.protocol import messages
from mpconv.protocol.codec import decode_from_coordinator, encode
from mpconv.protocol.job import Clusters, Job
from mpconv.transports import connect
from mpconv.transports.base import Access
from mpconv.workers.launch.provider import Ended, WorkerProvider

SIZE = 1 << 20
PID = 1
WANT = encode(messages.Want(1))
HELLO = messages.Hello(messages.VERSION, PID)


class Hostile(WorkerProvider):
    """In place of worker processes: a peer that sends what it likes, once it was granted what it wanted."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = frames

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.speaking = asyncio.ensure_future(self.speak())
        return [PID]

    async def speak(self) -> None:
        for frame in self.frames:
            self.socket.send(frame)
            while frame == WANT and not self.granted():
                await asyncio.sleep(0)

    def granted(self) -> bool:
        try:
            return isinstance(decode_from_coordinator(self.socket.recv(zmq.NOBLOCK)), messages.LeaseGrant)
        except zmq.Again:
            return False

    async def stop(self, grace: float) -> None:
        self.speaking.cancel()
        self.socket.close()
        self.context.term()


def run(*frames: bytes, clusters: Clusters | None = None, layout: Layout | None = None) -> Coordinator:
    async def main() -> Coordinator:
        source = RawImage(await connect("memory:source", Access.READ, create_size=SIZE))
        job = Job(
            id=1, sources=[Place(url="memory:source")], targets=[Place(url="null:")], size=SIZE, in_order=True,
            sparse_size=4096, zero_initialised=False, requests=1, durable=True, clusters=clusters,
        )  # fmt: skip
        made = layout or (Layout(SIZE, Qcow2Options()) if clusters is not None else None)
        coordinator = Coordinator(job, source, Hostile(*frames), 2, Observer(), layout=made)
        async with asyncio.timeout(20):
            await coordinator.run()
        return coordinator

    return asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        messages.Done(1, 1, 0),
        messages.Done(1, 1, SIZE + 1),
        messages.TargetFailed(1, 1, "why", "writing", "image", 0),
    ],
)
def test_a_worker_that_breaks_the_rules_fails_the_job(wrong):
    frames = [HELLO, messages.Want(1), wrong]
    with pytest.raises(WorkerLost, match=r"sent what none sends .*: please report it"):
        run(*map(encode, frames))


def test_a_worker_of_another_version_fails_the_job():
    with pytest.raises(Exception, match="mpconv was replaced by another version while it ran: run the command again"):
        run(encode(messages.Hello(99, 1)))


def test_what_is_no_message_and_what_is_stale_changes_nothing():
    steps = [HELLO, messages.Want(1), messages.Ready(1, 1), messages.Done(1, 7, 0), messages.Done(2, 1, 0)]
    rest = [messages.Done(1, 1, SIZE), messages.Done(1, 1, SIZE), messages.FlushDone(1)]
    coordinator = run(b"", b"\xff" * 100, *map(encode, steps), b"{}", *map(encode, rest))
    assert coordinator.bytes_done == SIZE
    assert coordinator.may_have_written


class Endless:
    """A source of which there is always more to know: a byte of a sector is data, the next sector is zero."""

    size = 1 << 50
    seams = ()

    def __init__(self) -> None:
        self.given = 0

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self.given += 1000
        return [Extent(offset + n * 512, 512, Kind(n % 2)) for n in range(1000)]


def test_block_status_is_walked_ahead_but_not_without_end():
    async def main() -> int:
        source, asked = Endless(), -1
        job = Job(
            id=1, sources=[Place(url="null:")], targets=[Place(url="null:")], size=source.size, in_order=True,
            sparse_size=4096, zero_initialised=False, requests=1, durable=True,
        )  # fmt: skip
        coordinator = Coordinator(job, source, Hostile(), 1, Observer())
        running = asyncio.create_task(coordinator.run())
        while asked != source.given or not asked:
            asked = source.given
            for _ in range(20):
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return source.given

    assert 10_000 < asyncio.run(main()) < 20_000


def test_a_defect_in_the_walk_ends_the_job():
    """It would wait for ever otherwise: the workers are alive."""

    class Broken(Endless):
        async def block_status(self, offset: int, length: int) -> list[Extent]:
            return []

    async def main() -> None:
        job = Job(
            id=1, sources=[Place(url="null:")], targets=[Place(url="null:")], size=SIZE, in_order=True,
            sparse_size=4096, zero_initialised=False, requests=1, durable=True,
        )  # fmt: skip
        async with asyncio.timeout(20):
            await Coordinator(job, Broken(), Hostile(), 1, Observer()).run()

    with pytest.raises(Fatal, match="internal error in the coordinator: IndexError"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("part", "ready"),
    [
        (4096, messages.Ready(1, 1)),
        (4096, messages.Ready(1, 1, [0] * 255)),
        (4096, messages.Ready(1, 1, [0] * 257)),
        (4096, messages.Ready(1, 1, [4097] + [0] * 255)),
        (1024, messages.Ready(1, 1, [0] * 256)),
        (1024, messages.Ready(1, 1, [0] * 256, [0] * 255)),
    ],
)
def test_needs_that_are_not_those_of_the_lease_fail_the_job(part, ready):
    with pytest.raises(WorkerLost, match="are not those of 256 clusters"):
        run(*map(encode, [HELLO, messages.Want(1), ready]), clusters=Clusters(size=4096, part=part))


def test_places_are_given_once_and_count_when_the_lease_is_done():
    needs = [4096, 0, 100, *[0] * 253]
    frames = [HELLO, messages.Want(1), messages.Ready(1, 1, needs), messages.Ready(1, 1, [1]), messages.Done(1, 1, 0)]
    layout = Layout(SIZE, Qcow2Options(cluster_size=4096))
    run(*map(encode, [*frames, messages.FlushDone(1)]), clusters=Clusters(size=4096, part=4096), layout=layout)
    assert list(layout.references) == [1, 1, 1]
    assert layout.end == 3 * 4096
    assert [bool(entry) for entry in layout.tables[0][:4]] == [True, False, True, False]
