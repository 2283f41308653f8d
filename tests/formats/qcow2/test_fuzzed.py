"""Images of any bytes: only mpconv's own errors come out, soon and in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.formats.qcow2 import codecs, entries, header, snapshots
from mpconv.formats.qcow2.entries import Held
from mpconv.model.errors import ImageError
from tests.support.qcow2_bytes import Draft
from tests.support.qcow2_replay import replay, seeds

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*"))
SEEDS = list(seeds().values())
MiB = 1 << 20
quickly = settings(max_examples=300, deadline=None)
ints = st.one_of(st.integers(0, 100), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << bit for bit in range(64)]))


@st.composite
def mutated(draw: st.DrawFn, images: st.SearchStrategy[bytes]) -> bytes:
    """An image with a few of its bytes or fields changed, or a part left out."""
    image = bytearray(draw(images))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(image)))
        kind = draw(st.sampled_from(["byte", "field", "field", "header", "cut", "text"]))
        if kind == "byte":
            image[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "field":
            image[at // 8 * 8 : at // 8 * 8 + 8] = struct.pack(">Q", draw(ints))
        elif kind == "header":
            place = draw(st.integers(1, 28)) * 4
            image[place : place + 4] = struct.pack(">I", draw(ints) & 0xFFFFFFFF)
        elif kind == "cut":
            del image[at:]
        else:
            image[at : at + 20] = draw(st.binary(max_size=40))
    return bytes(image)


@quickly
@given(mutated(st.sampled_from(SEEDS)))
def test_mutated_images_end_in_bytes_or_in_a_refusal(image: bytes):
    replay(image)


@quickly
@given(st.binary(max_size=4096))
def test_random_bytes_behind_a_magic_number(body: bytes):
    replay(header.MAGIC + body)


@quickly
@given(mutated(st.sampled_from([draft[:512] for draft in SEEDS])), ints)
def test_headers(start: bytes, file_size: int):
    """What is taken keeps the limits."""
    try:
        parsed = header.parse(start, file_size)
    except ImageError:
        return
    assert parsed.l1_size * 8 <= header.LARGEST_L1 and 512 <= parsed.cluster_size <= 2 * MiB
    assert parsed.l1_offset % parsed.cluster_size == 0
    assert parsed.size <= parsed.l1_size * parsed.l2_entries * parsed.cluster_size
    assert parsed.compression in {"zlib", "zstd"}


@quickly
@given(st.binary(max_size=2000), st.integers(0, 70000))
def test_snapshot_tables(data: bytes, count: int):
    try:
        found, taken = snapshots.parse(data, count)
    except ImageError:
        return
    assert len(found) <= count and taken <= len(data) + 7


@quickly
@given(
    st.lists(ints, min_size=64, max_size=64),
    st.integers(0, 64 * 512 - 1).flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, 64 * 512))),
    st.sampled_from([0, header.DATA_FILE]),
    st.sampled_from([2, 3]),
)
def test_tables_of_any_entries_cover_the_range_once(l2: list[int], span: tuple[int, int], features: int, version: int):
    first = 1 << 30
    draft = Draft(version=version, incompatible=features if version == 3 else 0)
    parsed = header.parse(bytes(draft.bytes()), 1 << 40)
    start, end = first + span[0], first + span[1]
    at = start
    try:
        for run in entries.runs(entries.table(struct.pack(">64Q", *l2)), first, start, end, parsed):
            assert run.start == at and run.length > 0
            assert run.kind is not Held.DATA or run.host is not None
            at = run.end
    except ImageError:
        return
    assert at == end


near = st.one_of(
    st.integers(0, 70).map(lambda cluster: (1 << 63) | cluster * 512),
    st.sampled_from([0, 1, 2, 1 << 63, 1 << 62, (1 << 56) - 512, 1 << 56]),
)


@quickly
@given(st.lists(st.tuples(near, st.integers(1, 12)), min_size=8, max_size=8))
def test_data_that_goes_on_is_told_in_one_piece_and_is_the_same(pieces: list[tuple[int, int]]):
    """As each cluster by itself: nothing is joined that only looks alike."""
    l2 = [entry + 512 * n if entry & entries.OFFSET else entry for entry, count in pieces for n in range(count)]
    l2 = (l2 + [0] * 64)[:64]
    parsed = header.parse(bytes(Draft().bytes()), 1 << 40)
    table = entries.table(struct.pack(">64Q", *(entry & (1 << 64) - 1 for entry in l2)))
    together = list(entries.runs(table, 0, 0, 64 * 512, parsed))
    singly = [run for at in range(0, 64 * 512, 512) for run in entries.runs(table, 0, at, at + 512, parsed)]
    for run in singly:
        (within,) = [one for one in together if one.start <= run.start and run.end <= one.end]
        assert within.kind is run.kind
        assert run.host == (None if within.host is None else within.host + run.start - within.start)
    assert sum(run.length for run in together) == 64 * 512


@quickly
@given(st.binary(max_size=3000), st.sampled_from(["zlib", "zstd"]), st.sampled_from([512, 65536]))
def test_compressed_bytes_fill_the_cluster_or_are_refused(stored: bytes, codec: str, size: int):
    cluster = bytearray(size)
    try:
        codecs.decompress_into(codec, memoryview(stored), memoryview(cluster))
    except ImageError:
        return
    assert len(cluster) == size


@quickly
@given(st.binary(max_size=3000), st.sampled_from(["zlib", "zstd"]), st.lists(st.tuples(ints, ints), max_size=4))
def test_damaged_streams_of_a_real_compressor(content: bytes, codec: str, changes: list[tuple[int, int]]):
    whole = content.ljust(4096)
    stored = bytearray(codecs.compressor(codec)(memoryview(whole)))
    for at, value in changes:
        stored[at % len(stored)] = value & 0xFF
    cluster = bytearray(4096)
    try:
        codecs.decompress_into(codec, memoryview(bytes(stored) + b"what follows"), memoryview(cluster))
    except ImageError:
        assert changes
        return
    assert changes or cluster == whole


def test_what_the_fuzzer_found_is_read_or_refused():
    """Each in bounded time and memory."""
    assert len(CORPUS) > 50
    tracemalloc.start()
    try:
        for path in CORPUS:
            began = time.process_time()
            tracemalloc.reset_peak()
            replay(path.read_bytes())
            assert time.process_time() - began < 5, path
            assert tracemalloc.get_traced_memory()[1] < 80 * MiB, path
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", seeds())
def test_the_fuzzers_seeds_are_what_they_are_called(name: str):
    replay(seeds()[name])
