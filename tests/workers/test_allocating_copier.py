"""What of a buffer is stored and where it is written, for targets whose format says where bytes lie."""

from __future__ import annotations

import asyncio
import os
import zlib

import pytest

from mpconv.formats.raw import RawImage
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import KiB
from mpconv.protocol.job import Clusters
from mpconv.workers.allocating_copier import ClusterCopier, Prepared, Write, in_place, joined, plan
from tests.workers.test_copier import Recorder, Reported, job, lease

SIZE = 4 * KiB
WHOLE = Clusters(size=SIZE, part=SIZE)
PARTS = Clusters(size=SIZE, part=SIZE // 4)


def test_a_cluster_is_stored_when_any_of_it_is_data():
    view = memoryview(bytearray(4 * SIZE))
    runs = [(0, SIZE, True), (SIZE, 512, False), (SIZE + 512, 2 * SIZE, True), (3 * SIZE + 512, SIZE - 512, False)]
    prepared = plan(view, runs, WHOLE)
    assert prepared == Prepared([0, SIZE, 0, SIZE], [SIZE, 3 * SIZE], [], 3 * SIZE, runs)


def test_parts_are_told_apart_from_bit_0():
    view = memoryview(bytearray(2 * SIZE))
    prepared = plan(view, [(0, 1024, True), (1024, 1025, False), (2049, 2 * SIZE - 2049, True)], PARTS)
    assert (prepared.needs, prepared.parts) == ([SIZE, 0], [0b0110, 0])


def test_data_that_ends_inside_the_last_cluster_needs_all_of_it():
    prepared = plan(memoryview(bytearray(2 * SIZE)), [(0, SIZE + 512, False)], WHOLE)
    assert (prepared.needs, prepared.blobs) == ([SIZE, SIZE], [0, SIZE])


def test_in_place_only_data_is_written():
    view = memoryview(bytes(range(256)))
    assert in_place(view, [(0, 16, True), (16, 16, False), (32, 32, True), (64, 192, False)], 1000) == [
        (1016, [view[16:32]]),
        (1064, [view[64:]]),
    ]


def test_plain_clusters_side_by_side_go_in_one_write():
    view = memoryview(os.urandom(5 * SIZE))
    prepared = Prepared([SIZE, SIZE, 0, SIZE, SIZE], [0, SIZE, 3 * SIZE, 4 * SIZE], [], SIZE, [])
    places = [SIZE, 2 * SIZE, 3 * SIZE, 8 * SIZE]
    assert joined(view, prepared, places, WHOLE) == [
        (SIZE, [view[: 2 * SIZE]]),
        (3 * SIZE, [view[3 * SIZE : 4 * SIZE]]),
        (8 * SIZE, [view[4 * SIZE :]]),
    ]


def whole(writes: list[Write]) -> list[tuple[int, bytes]]:
    return [(place, b"".join(parts)) for place, parts in writes]


@pytest.mark.parametrize("unit", [512, 1024])
def test_compressed_clusters_side_by_side_are_padded_together(unit):
    view = memoryview(bytes(3 * SIZE))
    prepared = Prepared([3, 4, 5], [b"abc", b"defg", b"hijkl"], [], 0, [])
    clusters = Clusters(size=SIZE, part=SIZE, unit=unit)
    writes = whole(joined(view, prepared, [SIZE, SIZE + 3, 2 * SIZE], clusters))
    assert writes == [(SIZE, b"abcdefg".ljust(unit, b"\0")), (2 * SIZE, b"hijkl".ljust(unit, b"\0"))]


def test_compressed_and_plain_ones_are_written_apart():
    view = memoryview(os.urandom(3 * SIZE))
    prepared = Prepared([3, SIZE, 5], [b"abc", SIZE, b"hijkl"], [], 0, [])
    writes = whole(joined(view, prepared, [SIZE, 2 * SIZE, SIZE + 3], WHOLE))
    assert writes == [
        (SIZE, b"abc".ljust(512, b"\0")),
        (2 * SIZE, view[SIZE : 2 * SIZE]),
        (SIZE + 3, b"hijkl".ljust(509, b"\0")),
    ]


def copied(content: bytes, clusters: Clusters, extent: Extent) -> tuple[Reported, bytes]:
    """One lease, whose places are the clusters from the second on."""

    async def run() -> tuple[Reported, bytes]:
        source, target, reports = Recorder(content), Recorder(bytes(16 * SIZE)), Reported()
        todo = job(len(content), clusters=clusters, buffer_size=16 * SIZE)
        copier = ClusterCopier(todo, RawImage(source), [target], reports, clusters)
        running = asyncio.ensure_future(copier.run())
        held = lease(1, extent, token=False)
        await copier.pieces.add(held)
        await reports.until(("ready", 1))
        held.places = [(1 + n) * SIZE for n, need in enumerate(held.needs) if need]
        held.token.set()
        await reports.until(("done", 1))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return reports, target.content

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("part", [SIZE, SIZE // 32])
def test_compressed_beside_the_loop_and_zeros_and_noise_are_not(part):
    text, noise = b"text" * KiB, os.urandom(SIZE)
    content = text + bytes(SIZE) + noise + b"\x01" * 512
    clusters = Clusters(size=SIZE, part=part, compression="zlib")
    reports, target = copied(content, clusters, Extent(0, len(content)))
    [held] = reports.finished
    assert held.needs[1] == 0 and held.needs[2] == SIZE
    assert 0 < held.needs[0] < SIZE and 0 < held.needs[3] < SIZE
    assert held.parts == ([0, 0, 0xFFFFFFFF, 0] if part < SIZE else [])
    assert held.zeros == SIZE
    assert zlib.decompressobj(-15).decompress(target[SIZE:]) == text
    assert zlib.decompressobj(-15).decompress(target[4 * SIZE :]) == content[3 * SIZE :].ljust(SIZE, b"\0")
    assert target[3 * SIZE : 4 * SIZE] == noise


def test_zeros_past_the_end_of_the_disk_are_not_counted():
    clusters = Clusters(size=SIZE, part=SIZE, compression="zlib")
    reports, _ = copied(bytes(SIZE + 512), clusters, Extent(0, SIZE + 512))
    assert (reports.finished[0].zeros, reports.finished[0].needs) == (SIZE + 512, [0, 0])


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.ZERO])
@pytest.mark.parametrize("part", [SIZE, SIZE // 4])
def test_zeros_that_are_to_be_stored_take_their_clusters_but_are_told_apart(kind, part):
    clusters = Clusters(size=SIZE, part=part, stores_zeros=True)
    reports, target = copied(bytes(2 * SIZE), clusters, Extent(0, 2 * SIZE, kind))
    [held] = reports.finished
    assert held.needs == [SIZE, SIZE]
    assert held.parts == ([0, 0] if part < SIZE else [])
    assert target == bytes(16 * SIZE)
