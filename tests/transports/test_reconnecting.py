"""Connections that are lost and made again, to real servers through a relay."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.formats.qcow2.image import read_metadata
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.rewriter import Rewriter, load
from mpconv.formats.qcow2.writer import Writer
from mpconv.model.errors import Fatal, Gone, Retryable, StatusWithdrawn
from mpconv.model.extent import Extent
from mpconv.model.place import Place
from mpconv.transports.base import CLOSED, Access, Opening, Transport
from mpconv.transports.iscsi import login
from mpconv.transports.memory import MemoryTransport
from mpconv.transports.reconnecting import ReconnectingReader
from mpconv.transports.retry import AT_ONCE, Retry, silently
from tests.support.nfs_proxy import Answer, Cut, nfs_proxy
from tests.support.relay import Changes, Relay, iscsi_length, relay, rpc_length
from tests.support.servers import IscsiServer, NfsServer

KiB, MiB = 1 << 10, 1 << 20
PATIENT = Retry(20)


@pytest.fixture
def files(nfs: NfsServer) -> Iterator[Relay]:
    with relay("127.0.0.1", nfs.port) as made:
        yield made


@pytest.fixture
def luns(iscsi: IscsiServer) -> Iterator[Relay]:
    with relay("127.0.0.1", iscsi.port) as made:
        yield made


def nfs_place(nfs: NfsServer, files: Relay, name: str) -> Place:
    return Place(url=nfs.url(name).replace(f"nfsport={nfs.port}", f"nfsport={files.port}"))


async def in_thread(call: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call)


def test_requests_that_were_under_way_are_made_again(nfs, files):
    content = os.urandom(8 * MiB)
    nfs.path("again.raw").write_bytes(content)
    told: list[str] = []

    async def run() -> list[bytes]:
        place = nfs_place(nfs, files, "again.raw")
        store = await transports.open_place(place, Access.READ, retry=PATIENT, tell=told.append)
        files.cut_replies(3 * MiB, 3)
        buffers = [bytearray(2 * MiB) for _ in range(4)]
        await asyncio.gather(*(store.read_into(n * 2 * MiB, memoryview(b)) for n, b in enumerate(buffers)))
        await store.close()
        return [bytes(buffer) for buffer in buffers]

    assert b"".join(asyncio.run(run())) == content
    assert files.counts["cut"] == 3
    line = r"'nfs://\S+' was not to be reached \(the connection to the server was lost\): it answers again"
    assert len(told) == 3 and all(re.fullmatch(line, text) for text in told), told


@pytest.mark.parametrize("name", ["LOOKUP", "GETATTR", "FSINFO"])
def test_a_server_that_goes_again_while_it_is_opened_anew(nfs: NfsServer, name: str) -> None:
    """Each answer to that name is a connection cut, for two more connections."""
    content = os.urandom(MiB)
    nfs.path("anew.raw").write_bytes(content)
    lost: list[int] = []

    def reply(called: str, body: bytes, number: int, call: bytes) -> Answer:
        if (called == "READ" and not lost) or (called == name and 0 < len(lost) < 3):
            lost.append(number)
            return Cut.ONE
        return None

    async def run(url: str) -> bytes:
        store = await transports.open_place(Place(url=url), Access.READ, retry=PATIENT)
        buffer = bytearray(MiB)
        await store.read_into(0, memoryview(buffer))
        await store.close()
        return bytes(buffer)

    with nfs_proxy(nfs.port, reply=reply) as proxy:
        assert asyncio.run(run(proxy.url(nfs.url("anew.raw")))) == content
    assert len(lost) == 3


def test_without_retries_the_request_says_what_happened(nfs, files):
    nfs.path("once.raw").write_bytes(bytes(MiB))

    async def run() -> None:
        store = await transports.open_place(nfs_place(nfs, files, "once.raw"), Access.READ, retry=AT_ONCE)
        files.cut()
        try:
            await store.read_into(4096, memoryview(bytearray(4096)))
        finally:
            await store.close()

    with pytest.raises(Gone, match=r"error while reading at byte 4096 of 'nfs://\S+: the connection to the server was"):
        asyncio.run(run())


def test_to_close_ends_what_waits_for_a_server(nfs, files):
    nfs.path("waits.raw").write_bytes(bytes(MiB))

    async def run() -> BaseException | None:
        failed = asyncio.Event()
        place = nfs_place(nfs, files, "waits.raw")
        store = await transports.open_place(place, Access.READ, retry=PATIENT, tell=lambda _: failed.set())
        files.refuse()
        reading = asyncio.create_task(store.read_into(0, memoryview(bytearray(4096))))
        await failed.wait()
        await store.close()
        [outcome] = await asyncio.gather(reading, return_exceptions=True)
        return outcome

    outcome = asyncio.run(run())
    assert isinstance(outcome, Retryable) and outcome.why == "the connection is closed"


class Liar(MemoryTransport):
    """Its block status was wrong."""

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        raise StatusWithdrawn("there is data")


def test_that_block_status_was_wrong_is_no_lost_connection():
    async def reopen() -> Transport:
        raise AssertionError("not reached")

    store = ReconnectingReader(
        Liar("memory:liar", bytearray(4096), created=False), reopen, PATIENT, silently, steady=True
    )
    with pytest.raises(StatusWithdrawn):
        asyncio.run(store.block_status(0, 4096))


class Asked(MemoryTransport):
    """Tells nothing of its block status until it is closed."""

    asked: asyncio.Event
    closed: asyncio.Event

    async def release(self) -> bool:
        return False

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self.asked.set()
        await self.closed.wait()
        raise self.error(Retryable, "reading block status", offset, CLOSED)

    async def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("retry", [AT_ONCE, PATIENT])
def test_what_is_asked_when_it_is_released_needs_no_other_connection(retry: Retry) -> None:
    """Else it would take away the one session for whose sake it was released, or fail for want of it."""

    async def reopen() -> Transport:
        raise AssertionError("nobody needs one")

    async def run() -> list[Extent]:
        store = Asked("memory:asked", bytearray(MiB), created=False)
        store.asked, store.closed = asyncio.Event(), asyncio.Event()
        lasting = ReconnectingReader(store, reopen, retry, silently)
        asking = asyncio.create_task(lasting.block_status(4096, 8192))
        await store.asked.wait()
        await lasting.release()
        return await asking

    assert asyncio.run(run()) == [Extent(4096, 8192)]


def test_block_status_outlasts_the_connection(nfs, files):
    path = nfs.path("holes.raw")
    with path.open("wb") as file:
        file.write(os.urandom(MiB))
        file.truncate(16 * MiB)

    async def run() -> list[list[Extent]]:
        store = await transports.open_place(nfs_place(nfs, files, "holes.raw"), Access.READ, retry=PATIENT)
        first = await store.block_status(0, 16 * MiB)
        files.cut()
        second = await store.block_status(0, 16 * MiB)
        await store.close()
        return [first, second]

    first, second = asyncio.run(run())
    assert [extent.length for extent in first] == [MiB, 15 * MiB]
    assert first == second


REQUESTS: dict[str, Callable[[Transport], Awaitable[object]]] = {
    "read": lambda store: store.read_into(0, memoryview(bytearray(4096))),
    "write": lambda store: store.write(0, memoryview(bytes(4096))),
    "zero": lambda store: store.zero(0, 4096),
    "zero much": lambda store: store.zero(0, 4 * MiB),
    "flush": lambda store: store.flush(),
    "status": lambda store: store.block_status(0, MiB),
    "disk size": lambda store: store.disk_size(),
    "fingerprint": lambda store: store.fingerprint(),
    "known by": lambda store: store.known_by(),
}


@pytest.mark.parametrize("scheme", ["nfs", "iscsi"])
def test_nothing_waits_for_an_answer_on_a_connection_that_is_no_more(nfs, files, iscsi, luns, lun, scheme):
    """Whoever asks after it was noticed that it is lost, or after it was closed, and whatever."""
    nfs.path("lost.raw").write_bytes(bytes(4 * MiB))
    if scheme == "nfs":
        between, place = files, nfs_place(nfs, files, "lost.raw")
    else:
        between, place = luns, Place(url=lun(4 * MiB).url.replace(f":{iscsi.port}/", f":{luns.port}/"))

    async def asked(store: Transport) -> dict[str, object]:
        requests = asyncio.gather(*(ask(store) for ask in REQUESTS.values()), return_exceptions=True)
        return dict(zip(REQUESTS, await asyncio.wait_for(requests, 30), strict=True))

    async def run() -> list[dict[str, object]]:
        store = await transports.connect(place.url, Access.WRITE)
        between.cut()
        with pytest.raises(Retryable):
            await REQUESTS["read"](store)
        lost = await asked(store)
        await store.close()
        return [lost, await asked(store)]

    needs_it = {"read", "write", "zero much", "flush"} | ({"known by"} if scheme == "nfs" else set())
    for outcomes, why in zip(asyncio.run(run()), ("was lost", "is closed"), strict=True):
        errors = {what: found for what, found in outcomes.items() if isinstance(found, BaseException)}
        assert needs_it <= errors.keys()
        assert all(type(found) is Retryable and why in found.why for found in errors.values()), errors


@pytest.mark.parametrize("scheme", ["nfs", "iscsi"])
def test_the_watchdog_ends_what_is_no_read_too(nfs, files, iscsi, luns, lun, monkeypatch, scheme):
    nfs.path("silent.raw").write_bytes(bytes(MiB))
    monkeypatch.setenv("MPCONV_REQUEST_SECONDS", "0.7")
    if scheme == "nfs":
        between, place = files, nfs_place(nfs, files, "silent.raw")
    else:
        url = lun(MiB).url
        between, place = luns, Place(url=url.replace(f":{iscsi.port}/", f":{luns.port}/"))

    async def run() -> list[object]:
        store = await transports.open_place(place, Access.WRITE)
        between.stall()
        requests: list[Awaitable[object]] = [store.write(0, memoryview(bytes(4096))), store.flush()]
        if scheme == "nfs":
            requests.append(store.known_by())
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        await store.close()
        between.go_on()
        return outcomes

    started = time.monotonic()
    for outcome in asyncio.run(run()):
        assert isinstance(outcome, Retryable), outcome
        assert "has not answered for 0.7 seconds" in outcome.why or "in time" in outcome.why
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf"])
def test_a_time_limit_that_is_none(nfs, monkeypatch, text):
    nfs.path("limit.raw").write_bytes(bytes(MiB))
    monkeypatch.setenv("MPCONV_REQUEST_SECONDS", text)
    with pytest.raises(Fatal, match=f"MPCONV_REQUEST_SECONDS is '{text}': it must be a number of seconds"):
        asyncio.run(transports.connect(nfs.url("limit.raw"), Access.READ))


def test_what_a_lun_is_can_be_asked_over_a_connection_that_is_lost(iscsi, luns, lun):
    place = Place(url=lun(MiB).url.replace(f":{iscsi.port}/", f":{luns.port}/"))
    told: list[str] = []

    async def run() -> None:
        plain = await transports.open_place(place, Access.WRITE)
        store = transports.remade(plain, place, growing=False, retry=PATIENT, tell=told.append)
        known = await store.fingerprint()
        assert known.same
        luns.cut()
        assert await store.fingerprint() == known
        await store.close()

    asyncio.run(run())
    assert "it answers again" in told[-1]


@pytest.mark.parametrize("reinstated", [True, False])
def test_a_connection_made_again_ends_the_session_of_before(iscsi, luns, tmp_path, monkeypatch, reinstated):
    """A write that lies in the network when its connection is given up does not land behind the next one's. tgt looks
    for the session of before only where there is a login by CHAP.
    """
    backing = tmp_path / "lun.img"
    backing.write_bytes(bytes(MiB))
    user, secret = f"again-{reinstated}".lower(), "a-secret-1234"
    iqn = iscsi.add_target(f"iqn.2026-11.org.mpconv:{user}", (user, secret))
    url = iscsi.url(iqn, iscsi.add_lun(iqn, backing)).replace("//", f"//{user}%{secret}@")
    place = Place(url=url.replace(f":{iscsi.port}/", f":{luns.port}/"))
    if not reinstated:
        monkeypatch.setattr(login, "_give_back", lambda address, number: None)

    async def run() -> tuple[int, bytes]:
        first = await transports.open_place(place, Access.WRITE)
        luns.stall(new_ones_too=False)
        late = asyncio.create_task(first.write(0, memoryview(b"late" * 1024)))
        await in_thread(lambda: luns.wait_for("held", 1))
        await first.close()
        with pytest.raises(Retryable):
            await late
        second = await transports.open_place(place, Access.WRITE)
        connections = iscsi.connections(iqn)
        await second.write(0, memoryview(b"next" * 1024))
        luns.go_on()
        await in_thread(lambda: luns.wait_for("ended", 1))
        read = bytearray(4096)
        for _ in range(1 if reinstated else 1000):
            await second.read_into(0, memoryview(read))
            if read.startswith(b"late"):
                break
        await second.close()
        return connections, bytes(read)

    connections, read = asyncio.run(run())
    assert (connections, read[:4]) == ((1, b"next") if reinstated else (2, b"late"))


class Refusals:
    """The next `times` replies that are wanted say something else: those of all connections together."""

    def __init__(self, times: int, change: Callable[[bytearray], bool]) -> None:
        self.times = times
        self._change = change

    def __call__(self, reply: bytearray) -> None:
        self.times -= self.times > 0 and self._change(reply)


def jukebox(reply: bytearray) -> bool:
    """In place of what was read: NFS3ERR_JUKEBOX."""
    if len(reply) < 4096:
        return False
    reply[28:32] = (10008).to_bytes(4)
    return True


def says(status: int) -> Callable[[bytearray], bool]:
    """In place of GOOD behind data that was read."""

    def change(reply: bytearray) -> bool:
        if reply[0] & 0x3F != 0x25 or not reply[1] & 1 or len(reply) < 512:
            return False
        reply[3] = status
        return True

    return change


BUSY, RESERVED = 0x08, 0x18


@pytest.mark.parametrize(
    ("length", "change"),
    [(rpc_length, jukebox), (iscsi_length, says(BUSY))],
    ids=["JUKEBOX", "BUSY"],
)
@pytest.mark.parametrize(("times", "patience"), [(4, 20.0), (10**6, 1.0)])
def test_what_a_server_puts_off_is_asked_again_on_the_same_connection(nfs, iscsi, lun, length, change, times, patience):
    content = os.urandom(MiB)
    refusals = Refusals(times, change)
    if length is rpc_length:
        path, port, url = nfs.path(f"busy-{times}.raw"), nfs.port, nfs.url(f"busy-{times}.raw")
    else:
        made = lun(MiB)
        path, port, url = made.backing, iscsi.port, made.url
    path.write_bytes(content)

    async def run(url: str) -> bytes:
        store = await transports.open_place(Place(url=url), Access.READ, retry=Retry(patience))
        buffer = bytearray(MiB)
        try:
            await store.read_into(0, memoryview(buffer))
        finally:
            await store.close()
        return bytes(buffer)

    with relay("127.0.0.1", port, Changes(length, reply=refusals)) as between:
        url = url.replace(f"nfsport={port}", f"nfsport={between.port}").replace(f":{port}/", f":{between.port}/")
        if times > 5:
            with pytest.raises(Gone, match=r"error while reading at byte 0 of '\S+: the .*, for 1.5 seconds"):
                asyncio.run(run(url))
        else:
            assert asyncio.run(run(url)) == content
            assert refusals.times == 0
        assert between.counts["accepted"] <= 2 and not between.counts["cut"]


def test_a_reservation_ends_it_at_once(iscsi, lun):
    made = lun(MiB)

    async def run(url: str) -> None:
        store = await transports.open_place(Place(url=url), Access.READ, retry=PATIENT)
        try:
            await store.read_into(0, memoryview(bytearray(4096)))
        finally:
            await store.close()

    changes = Changes(iscsi_length, reply=Refusals(1, says(RESERVED)))
    reserved = pytest.raises(Fatal, match="another initiator has reserved the LUN")
    with relay("127.0.0.1", iscsi.port, changes) as between, reserved as raised:
        asyncio.run(run(made.url.replace(f":{iscsi.port}/", f":{between.port}/")))
    assert raised.type is Fatal


OPTIONS = Qcow2Options(cluster_size=4 * KiB)
SIZE = 600 * KiB
ANSWER = 150
"""Bytes: not more than an NFS server answers to a WRITE or COMMIT."""


async def written(layout: Layout, store: Transport, fill: bytes) -> None:
    """As workers do: every second cluster, flushed."""
    size = layout.cluster_size
    extent = Extent(0, layout.size)
    needs = [size if number % 2 else 0 for number in range(layout.size // size)]
    places = layout.place(extent, needs)
    for place in places:
        await store.write(place, memoryview(fill * size))
    await store.flush()
    layout.wrote(extent, needs, places, [0xFFFFFFFF if need else 0 for need in needs])


def as_it_should_be(path: Path, size: int, fill: bytes) -> None:
    """Neither errors nor leaks, and the right bytes."""
    check = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
    assert raw.read_bytes() == (bytes(4 * KiB) + fill * 4 * KiB) * (size // (8 * KiB))


GROWING = Opening(growing=True)


async def made(nfs: NfsServer, name: str) -> None:
    """An image that is there already."""
    store = await transports.connect(nfs.url(name), Access.WRITE, create_size=0, opening=GROWING)
    writer = Writer(store, Layout(SIZE, OPTIONS))
    await writer.begin()
    await written(writer.layout, store, b"\x01")
    await writer.finish()
    await store.close()


async def finished(nfs: NfsServer, files: Relay, name: str, opened: bool, after: int | None) -> int:
    """An image whose tables are written over a connection that is cut after so many bytes of answers. Bytes of them."""
    place = nfs_place(nfs, files, name)
    creating = None if opened else 0
    plain = await transports.connect(place.url, Access.WRITE, create_size=creating, opening=GROWING)
    store = transports.remade(plain, place, growing=True, retry=PATIENT, tell=silently)
    writer: Writer | Rewriter
    if opened:
        writer = await load(store, await read_metadata(store), SIZE, reads_as_zeros=False, durable=True)
    else:
        writer = Writer(store, Layout(SIZE, OPTIONS))
    await store.retried(writer.begin)
    worker = await transports.connect(nfs.url(name), Access.WRITE, opening=GROWING)
    await written(writer.layout, worker, b"\x02" if opened else b"\x01")
    await worker.close()
    before = files.counts["bytes"]
    if after is not None:
        files.cut_once(after)
    await store.retried(writer.finish)
    passed = files.counts["bytes"] - before
    await store.close()
    return passed


@pytest.mark.parametrize("opened", [False, True], ids=["new", "existing"])
def test_an_image_is_finished_whenever_the_connection_is_lost(nfs, files, opened):
    """As soon as its tables are written, since it was idle for long, or before any one of the answers."""
    passed, cuts, after = 0, 0, None
    while after is None or after < passed:
        path = nfs.path(f"finished-{opened}-{after}.qcow2")
        if opened:
            asyncio.run(made(nfs, path.name))
        found = asyncio.run(finished(nfs, files, path.name, opened, after))
        as_it_should_be(path, SIZE, b"\x02" if opened else b"\x01")
        if after is None:
            passed, after = found, 0
        else:
            cuts, after = cuts + 1, after + ANSWER
    # 964 or 1096 bytes of answers, or 676 or 808: one answer of 132 bytes may have come before they are counted.
    assert files.counts["cut"] == cuts >= (5 if opened else 6)
