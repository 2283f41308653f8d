"""The map of a file's holes: equal to lseek's with a real server, and harmless with servers that lie, fail or hang."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from pathlib import Path

import pytest

from mpconv.model.extent import Extent, Kind, merged
from mpconv.model.units import GiB, KiB, MiB
from mpconv.transports.base import Access
from mpconv.transports.nfs import store as nfs_transport
from mpconv.transports.nfs.v42 import FileFacts, HoleMap, Where, connect, hole_map
from mpconv.transports.nfs.v42.compound import Op, What
from mpconv.transports.nfs.v42.xdr import Malformed, Reader, opaque, words
from tests.support.fake_nfs4 import NXIO, Answer, FakeNfs4, Trouble
from tests.support.servers import NfsServer

SECONDS = 0.5
PATIENT = 5.0
TiB = 1024 * GiB
D, Z = Kind.DATA, Kind.ZERO


def stopped() -> float:
    """A clock by which nothing takes long."""
    return 0.0


async def whole(found: HoleMap, step: int | None = None) -> list[Extent]:
    """The extents of all of it, asked for from front to back; they follow each other without gaps."""
    extents: list[Extent] = []
    at = 0
    while at < found.size:
        length = min(step or found.size, found.size - at)
        some = await found.block_status(at, length)
        assert some[0].start == at
        assert all(first.end == second.start for first, second in itertools.pairwise(some))
        at = some[-1].end
        assert at <= some[0].start + length
        extents += some
    return list(merged(extents))


# -- a real server


def by_lseek(path: Path) -> list[Extent]:
    """The same, of the file itself, with holes under 64 KiB taken for data."""
    found, size = [], path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        at = 0
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                data = size
            if data > at:
                found.append(Extent(at, data - at, Z if data - at >= 64 * KiB else D))
            at = os.lseek(fd, data, os.SEEK_HOLE) if data < size else size
            if at > data:
                found.append(Extent(data, at - data))
    finally:
        os.close(fd)
    return list(merged(found))


def facts(path: Path, used: int | None = None) -> FileFacts:
    info = path.stat()
    seconds, nanoseconds = divmod(info.st_mtime_ns, 10**9)
    return FileFacts(info.st_size, info.st_ino, seconds, nanoseconds, info.st_blocks * 512 if used is None else used)


def island_file(path: Path, size: int, islands: list[tuple[int, int]]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, length in islands:
            file.seek(at)
            file.write(os.urandom(length))
    os.sync()
    return path


async def real_map(server: NfsServer, path: Path, *, name: str | None = None, used: int | None = 0) -> HoleMap | None:
    with path.open("rb") as file:
        descriptor = os.dup(file.fileno())

    async def read(offset: int, buffer: memoryview) -> None:
        os.preadv(descriptor, [buffer], offset)

    where = str(path) if name is None else name
    place = Where("127.0.0.1", server.port, where, os.getuid(), os.getgid())
    return await connect(place, facts=facts(path, used), read=read, clock=stopped)


ISLANDS = {
    "odd": (
        10 * MiB + 777,
        [(0, 1), (65536, 513), (300_000, 70_000), (3 * MiB - 1, 2), (5 * MiB + 511, 1), (10 * MiB, 777)],
    ),
    "hole-at-the-end": (64 * MiB, [(MiB, MiB)]),
    "hole-at-the-start": (64 * MiB, [(63 * MiB, MiB)]),
    "small-holes": (4 * MiB, [(at, 4096) for at in range(0, 4 * MiB, 32 * KiB)]),
    "all-hole": (100 * MiB + 1, []),
    "all-data": (2 * MiB + 5, [(0, 2 * MiB + 5)]),
    "one-byte": (1, [(0, 1)]),
    "8-TiB": (8 * TiB, [(0, MiB), (4 * TiB + 123, 4096), (8 * TiB - 1, 1)]),
    "many": (1500 * 192 * KiB, [(n * 192 * KiB + n % 7 * 512, 4096) for n in range(1500)]),
}


@pytest.mark.parametrize("kind", ISLANDS)
def test_equals_lseek(nfs: NfsServer, kind: str) -> None:
    path = island_file(nfs.path(f"islands-{kind}"), *ISLANDS[kind])

    async def run() -> None:
        found = await real_map(nfs, path)
        assert found is not None
        assert (found.size, found.fileid) == (path.stat().st_size, path.stat().st_ino)
        extents = await whole(found)
        assert found.doubt is None
        assert extents == by_lseek(path)
        assert await whole(found, step=max(path.stat().st_size // 7, 1)) == extents
        await found.close()
        await found.close()
        assert await whole(found) == extents, "what is known stays known"

    asyncio.run(run())


def test_no_map_of_what_has_no_holes(nfs: NfsServer) -> None:
    full = island_file(nfs.path("full"), MiB, [(0, MiB)])
    empty = island_file(nfs.path("empty"), 0, [])

    async def run() -> None:
        assert await real_map(nfs, full, used=None) is None
        assert await real_map(nfs, empty, used=None) is None

    asyncio.run(run())


def test_no_map_of_another_file(nfs: NfsServer) -> None:
    path = island_file(nfs.path("this"), *ISLANDS["odd"])
    other = island_file(nfs.path("other"), *ISLANDS["odd"])

    async def run() -> None:
        for name in (str(other), str(path) + "-missing", str(path.parent), "", "/", "x/" * 40, "\udcff", "n" * 300):
            assert await real_map(nfs, path, name=name) is None, name
        found = await real_map(nfs, path, name=f"/not/in/this/tree{path}")
        assert found is not None, "leading components are tried away"
        assert await whole(found) == by_lseek(path)

    asyncio.run(run())


def test_a_deep_path(nfs: NfsServer) -> None:
    path = nfs.path("/".join(["deep", *map(str, range(30))]))
    path.mkdir(parents=True)
    path = island_file(path / "image", *ISLANDS["odd"])

    async def run() -> None:
        found = await real_map(nfs, path)
        assert found is not None
        assert await whole(found) == by_lseek(path)

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a port below 1024")
def test_a_server_for_low_ports_only(nfs: NfsServer) -> None:
    path = island_file(nfs.unfriendly_export("privileged") / "low", *ISLANDS["odd"])

    async def run() -> None:
        found = await real_map(nfs, path)
        assert found is not None
        assert await whole(found) == by_lseek(path)

    asyncio.run(run())


def test_a_file_that_changes_ends_the_map(nfs: NfsServer) -> None:
    path = island_file(nfs.path("changing"), *ISLANDS["odd"])

    async def run() -> None:
        found = await real_map(nfs, path)
        assert found is not None
        writer = await nfs_transport.connect(nfs.url(path.name), Access.WRITE)
        await writer.write(MiB, memoryview(bytearray(b"new")))
        await writer.flush()
        await writer.close()
        assert {extent.kind for extent in await whole(found)} == {D}
        assert found.doubt == "the file has changed"

    asyncio.run(run())


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    with NfsServer(tmp_path) as server:
        path = island_file(server.path("image"), *ISLANDS["odd"])

        async def run() -> None:
            found = await real_map(server, path)
            assert found is not None
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            assert await whole(found) == [Extent(0, path.stat().st_size)]
            assert await real_map(server, path) is None
            await found.close()

        asyncio.run(run())


# -- a fake server


def every(period: int, offset: int, what: What) -> Answer:
    """The truth about a file that begins each `period` with 4096 bytes of data, far from its end."""
    start, inside = offset // period * period, offset % period
    if what is What.HOLE:
        return 0, False, start + 4096 if inside < 4096 else offset
    return 0, False, offset if inside < 4096 else start + period


SIZE = 40 * MiB
DATA = [(0, MiB), (9 * MiB, 10 * MiB), (20 * MiB, 21 * MiB), (30 * MiB, 31 * MiB)]
TRUTH = list(
    itertools.chain(
        *((Extent(start, MiB), Extent(start + MiB, stop - start - MiB, Z)) for (start, _), (stop, _) in
          itertools.pairwise([*DATA, (SIZE, 0)]))
    )
)  # fmt: skip


async def fake_map(
    server: FakeNfs4, path: str | None = None, seconds: float = PATIENT, each: float = 0
) -> HoleMap | None:
    """By a clock that each SEEK sets on by so many seconds."""
    where = Where("127.0.0.1", server.port, path or server.path, 0, 0)

    def clock() -> float:
        return server.calls[Op.SEEK] * each

    return await connect(where, facts=server.facts, read=server.read, seconds=seconds, clock=clock)


def test_the_truth_and_a_goodbye() -> None:
    async def run() -> None:
        async with FakeNfs4(SIZE, DATA) as server:
            found = await fake_map(server)
            assert found is not None
            assert await whole(found) == TRUTH
            assert found.doubt is None
            assert (await found.block_status(2 * MiB, 100))[0] == Extent(2 * MiB, 100, Z)
            assert await found.block_status(MiB - 5, 10) == [Extent(MiB - 5, 5), Extent(MiB, 5, Z)]
            goodbyes = (Op.CLOSE, Op.DESTROY_SESSION, Op.DESTROY_CLIENTID)
            assert [server.calls[operation] for operation in goodbyes] == [1, 1, 1]

    asyncio.run(run())


def test_a_pseudo_root_below_the_export() -> None:
    async def run() -> None:
        async with FakeNfs4(SIZE, DATA, path="/export/image") as server:
            found = await fake_map(server, "/srv/disks/export/image")
            assert found is not None
            assert await whole(found) == TRUTH

    asyncio.run(run())


def refusing(server: FakeNfs4, seconds: float = SECONDS, each: float = 0) -> tuple[HoleMap | None, list[Extent]]:
    """What such a server leads to; it ends, never with an exception, zeros only where they are."""

    async def run() -> tuple[HoleMap | None, list[Extent]]:
        async with asyncio.timeout(60), server:
            found = await fake_map(server, seconds=seconds, each=each)
            if found is None:
                return None, [Extent(0, server.size)]
            extents = await whole(found)
            await found.close()
            return found, extents

    return asyncio.run(run())


def only_data(server: FakeNfs4, seconds: float = SECONDS) -> HoleMap | None:
    found, extents = refusing(server, seconds)
    assert extents == [Extent(0, server.size)]
    assert found is None or found.doubt
    return found


def lie(answer: Answer, after: int = 0) -> FakeNfs4:
    """After some true answers to SEEK, always the same one."""
    server = FakeNfs4(SIZE, DATA)
    server.seek = lambda offset, what: answer if server.calls[Op.SEEK] > after else server.truth(offset, what)
    return server


@pytest.mark.parametrize("after", [0, 1, 2, 5, 7])
@pytest.mark.parametrize(
    "answer",
    [
        (0, False, 0),
        (0, True, 0),
        (0, False, SIZE + 1),
        (0, True, SIZE + 1),
        (0, False, 2**64 - 1),
        (0, True, MiB // 2),
    ],
    ids=["zero", "zero-ended", "beyond", "beyond-ended", "far-beyond", "ended-in-the-middle"],
)
def test_impossible_offsets(answer: Answer, after: int) -> None:
    found = only_data(lie(answer, after))
    assert found is not None
    assert found.calls <= after + 2


@pytest.mark.parametrize("answer", [(0, True, SIZE), (0, False, SIZE), (NXIO, False, 0)])
@pytest.mark.parametrize("after", [0, 2, 4])
def test_no_more_data_where_there_is_some(answer: Answer, after: int) -> None:
    """Mostly data, and the server says that it is zeros: samples tell."""
    server = lie(answer, after)
    server.data = [(0, MiB), (2 * MiB, 3 * MiB), (4 * MiB, SIZE - MiB)]
    only_data(server)


def test_a_hole_that_begins_too_early_or_late() -> None:
    """A server that is off by more than the samples are long: found at a hole's edge, sooner or later."""
    caught = 0
    for _ in range(20):
        server = FakeNfs4(SIZE, DATA)

        def shifted(offset: int, what: What, server: FakeNfs4 = server) -> Answer:
            status, ended, found = server.truth(max(0, offset + 8192), what)
            return status, ended, max(0, found - 8192)

        server.seek = shifted
        found, _ = refusing(server)
        caught += found is not None and found.doubt is not None
    assert caught > 10


def test_many_samples_where_holes_take_up_room() -> None:
    """One part in ten of the claimed hole has data: eight samples may miss it, sixty-four do not."""
    server = FakeNfs4(SIZE, [(at, at + 102_400) for at in range(0, SIZE, MiB)])
    server.seek = lambda offset, what: (NXIO, False, 0)
    random.seed(1)
    only_data(server)


@pytest.mark.parametrize("step", [1, 2, 512])
def test_a_server_that_never_ends(step: int) -> None:
    server = FakeNfs4(8 * TiB, [(0, MiB)])
    server.seek = lambda offset, what: (0, False, offset + step)
    _, extents = refusing(server, each=0.001)
    assert extents == [Extent(0, server.size)]
    assert server.calls[Op.SEEK] < 100_000


def test_a_server_that_always_finds_one_more_small_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each just large enough to count, so that it pays: the number of calls ends it."""
    monkeypatch.setattr(hole_map, "_CALLS", 500)
    monkeypatch.setattr(hole_map, "_ALL_CALLS", 2000)
    server = FakeNfs4(8 * TiB, [])
    server.seek = lambda offset, what: every(68 * KiB, offset, what)
    found, extents = refusing(server, seconds=PATIENT)
    assert found is not None
    assert found.doubt == "there is no end of holes"
    assert 2000 <= found.calls <= 2500
    assert sum(extent.kind is Z for extent in extents) >= 900, "what was found until then is kept"
    assert extents[-1].kind is D
    assert extents[-1].length > 7 * TiB


def test_a_slow_server_that_always_finds_something() -> None:
    """A great hole in every answer, so that it seems to pay: the time for the whole walk ends it."""
    server = FakeNfs4(2**62, [])
    server.seek = lambda offset, what: (0, False, offset + (16 * MiB if what is What.DATA and offset else 1))
    found, extents = refusing(server, seconds=PATIENT, each=0.1)
    assert found is not None
    assert found.doubt == "it takes too long"
    assert extents[-1].kind is D
    assert extents[-1].length > 2**61


def test_small_holes_are_passed_over_and_great_ones_found_after_them() -> None:
    """Where every hole is too small to pay, part of the file is data unasked, and the walk goes on behind it."""
    fragments = [(at, at + 4096) for at in range(0, GiB, 16 * KiB)]
    server = FakeNfs4(100 * GiB, [*fragments, (99 * GiB, 100 * GiB)])
    tail = FakeNfs4(100 * GiB, [(GiB - 16 * KiB, GiB), (99 * GiB, 100 * GiB)])
    server.seek = lambda offset, what: (
        every(16 * KiB, offset, what) if offset < GiB - 16 * KiB else tail.truth(offset, what)
    )
    found, extents = refusing(server, seconds=PATIENT, each=0.001)
    assert found is not None
    assert found.doubt is None
    assert [extent.kind for extent in extents] == [D, Z, D]
    assert extents[-1] == Extent(99 * GiB, GiB)
    assert extents[1].length >= 90 * GiB


@pytest.mark.parametrize("trouble", [*Trouble, 10004, 10008, 10013, 10052, 5, 13], ids=str)
@pytest.mark.parametrize(
    "operation", [Op.EXCHANGE_ID, Op.CREATE_SESSION, Op.RECLAIM_COMPLETE, Op.LOOKUP, Op.OPEN, Op.SEEK, Op.SEQUENCE]
)
def test_trouble_anywhere(operation: Op, trouble: Trouble | int) -> None:
    found = only_data(FakeNfs4(SIZE, DATA, trouble={operation: trouble}), seconds=0.25)
    assert (found is not None) == (operation is Op.SEEK)


@pytest.mark.parametrize("trouble", [*Trouble, 10052, 10044], ids=str)
def test_trouble_half_way(trouble: Trouble | int) -> None:
    assert only_data(FakeNfs4(SIZE, DATA, trouble={Op.SEEK: trouble}, after=4), seconds=0.25) is not None


def test_a_server_that_dies_after_a_stretch() -> None:
    """What was checked stays, the rest is data."""
    count = 4000
    server = FakeNfs4(count * MiB, [(n * MiB, n * MiB + 4096) for n in range(count)])
    server.seek = lambda offset, what: every(MiB, offset, what)
    server.trouble, server.after = {Op.SEEK: Trouble.HANG_UP}, 2000

    async def run() -> None:
        async with server:
            found = await fake_map(server, each=0.0005)
            assert found is not None
            extents = await whole(found)
            assert found.doubt
            assert found.withdrawn == [] and not found.lied
            assert Z in {extent.kind for extent in extents}
            assert extents[-1].kind is D
            assert extents[-1].length > 2000 * MiB

    asyncio.run(run())


def test_a_lie_after_a_stretch_takes_back_what_was_handed_out() -> None:
    count = 4000
    server = FakeNfs4(count * MiB, [(n * MiB, n * MiB + 4096) for n in range(count)])
    server.seek = lambda offset, what: (0, False, 0) if server.calls[Op.SEEK] > 2000 else every(MiB, offset, what)

    async def run() -> None:
        async with server:
            found = await fake_map(server, each=0.0005)
            assert found is not None
            handed_out = [extent for extent in await whole(found) if extent.kind is Z]
            assert handed_out
            assert found.withdrawn[: len(handed_out)] == handed_out and found.lied
            assert await found.block_status(0, found.size) == [Extent(0, found.size)]

    asyncio.run(run())


def test_a_file_that_changes_while_it_is_walked() -> None:
    server = FakeNfs4(SIZE, DATA)
    server.change = lambda: server.calls[Op.SEEK]
    found = only_data(server)
    assert found is not None
    assert found.doubt == "the file has changed"


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_samples_that_cannot_be_read(how: str) -> None:
    async def run() -> None:
        async def read(offset: int, buffer: memoryview) -> None:
            if how == "raises":
                raise OSError("no")
            await asyncio.Event().wait()

        async with FakeNfs4(SIZE, DATA) as server:
            where = Where("127.0.0.1", server.port, server.path, 0, 0)
            found = await connect(where, facts=server.facts, read=read, seconds=0.1)
            assert found is not None
            assert await whole(found) == [Extent(0, SIZE)]

    asyncio.run(run())


def test_nobody_listens() -> None:
    async def run() -> None:
        async with FakeNfs4(SIZE, DATA) as server:
            pass
        assert await fake_map(server) is None
        for host in ("no such host", "256.0.0.1", "", "x" * 300):
            where = Where(host, server.port, "/x", 0, 0)
            assert await connect(where, facts=server.facts, read=server.read, seconds=SECONDS) is None

    asyncio.run(run())


def test_a_cancelled_question_leaves_a_map_that_says_data() -> None:
    async def run() -> None:
        async with FakeNfs4(SIZE, DATA, trouble={Op.SEEK: Trouble.HANG}, after=2) as server:
            found = await fake_map(server, seconds=5)
            assert found is not None
            asking = asyncio.create_task(found.block_status(0, SIZE))
            await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            started = time.monotonic()
            assert await whole(found) == [Extent(0, SIZE)]
            await found.close()
            assert time.monotonic() - started < 1

    asyncio.run(run())


def test_xdr() -> None:
    assert opaque(b"abcde") == b"\0\0\0\5abcde\0\0\0"
    reader = Reader(opaque(b"abcde") + words(2, 1, 1 << 21))
    assert reader.opaque(5) == b"abcde"
    assert reader.bitmap() == 1 | 1 << 53
    for short in (b"", b"abc"):
        with pytest.raises(Malformed):
            Reader(short).word()
    for count in (9, 2**32 - 1):
        with pytest.raises(Malformed):
            Reader(words(count) + bytes(8)).opaque(8)
        with pytest.raises(Malformed):
            Reader(words(count)).bitmap()
