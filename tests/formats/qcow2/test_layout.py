"""Where clusters are put and what the tables say, against a model that only remembers who was given which bytes."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.formats.qcow2 import entries
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.refcounts import not_zero, packed, put
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import SECTOR, KiB

MOST = 48
"""Clusters of a disk."""


@dataclass(frozen=True)
class Asked:
    """A lease: its first cluster, what each of its clusters needs (as a share of a cluster, 0 none, 1 all), and what
    becomes of it: written, lost, or lost after it was written, that is written again by another.
    """

    first: int
    shares: tuple[float, ...]
    fate: str


shares = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 0.99))
asked = st.builds(
    Asked,
    st.integers(0, MOST - 1),
    st.lists(shares, min_size=1, max_size=8).map(tuple),
    st.sampled_from(["written", "lost", "again"]),
)
options = st.builds(
    Qcow2Options,
    cluster_size=st.sampled_from([512, 4 * KiB, 64 * KiB]),
    refcount_bits=st.sampled_from([1, 2, 4, 16, 64]),
)


def needs_of(layout: Layout, one: Asked) -> list[int]:
    whole = layout.cluster_size
    count = min(len(one.shares), layout.clusters - one.first)
    return [whole if share == 1 else min(int(share * whole) + (share > 0), whole - 1) for share in one.shares[:count]]


def references(layout: Layout) -> list[int]:
    """Of each host cluster, counted from the tables; the header's own."""
    found = [0] * len(layout.references)
    found[0] = 1
    for table in layout.tables.values():
        for entry in table[:: layout.words]:
            if entry & entries.COMPRESSED:
                host, stored = entries.compressed_place(entry, layout.cluster_bits)
                for cluster in range(host >> layout.cluster_bits, ((host + stored - 1) >> layout.cluster_bits) + 1):
                    found[cluster] += 1
            elif entry & entries.OFFSET:
                found[(entry & entries.OFFSET) >> layout.cluster_bits] += 1
    return found


@given(made=options, leases=st.lists(asked, max_size=25), rewrites=st.sampled_from([512, 4096]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_two_leases_get_the_same_bytes_and_references_are_what_the_tables_say(made, leases, rewrites):
    layout = Layout(MOST * made.cluster_size, made)
    layout.unit = unit = rewrites if made.cluster_size % rewrites == 0 else SECTOR
    given_bytes: dict[int, int] = {0: layout.cluster_size}  # place -> length, of everything that was ever handed out
    held: dict[int, tuple[int, int]] = {}  # guest cluster -> place, need
    for one in leases:
        needs = needs_of(layout, one)
        extent = Extent(one.first * layout.cluster_size, len(needs) * layout.cluster_size)
        for fate in ["lost", "written", "written"] if one.fate == "again" else [one.fate]:
            places = layout.place(extent, needs)
            wanted = [need for need in needs if need]
            assert len(places) == len(wanted)
            for place, need in zip(places, wanted, strict=True):
                assert place + need <= layout.end
                assert need < layout.cluster_size or place % layout.cluster_size == 0
                given_bytes[place] = need
            packed = [place for place, need in zip(places, wanted, strict=True) if need < layout.cluster_size]
            assert not packed or packed[0] % unit == 0, "another lease's padding ends where this one begins"
            if fate == "written":
                layout.wrote(extent, needs, places, [])
                rest = iter(places)
                held |= {one.first + n: (next(rest), need) for n, need in enumerate(needs) if need}
    ordered = sorted(given_bytes.items())
    for (start, length), (following, _) in itertools.pairwise(ordered):
        assert start + length <= following, "two clusters overlap"
    assert list(layout.references) == references(layout)
    assert max(layout.references) <= (1 << made.refcount_bits) - 1
    for cluster, (place, need) in held.items():
        entry = layout.tables[cluster // layout.per_table][cluster % layout.per_table]
        if need == layout.cluster_size:
            assert entry == entries.COPIED | place
        else:
            host, stored = entries.compressed_place(entry, layout.cluster_bits)
            assert host == place and need <= stored < need + SECTOR


@pytest.mark.parametrize("bits", [1, 2])
def test_a_host_cluster_takes_no_more_compressed_ones_than_can_be_counted(bits):
    layout = Layout(64 * 4 * KiB, Qcow2Options(cluster_size=4 * KiB, refcount_bits=bits))
    extent = Extent(0, 64 * 4 * KiB)
    needs = [100] * 64
    layout.wrote(extent, needs, layout.place(extent, needs), [])
    most = (1 << bits) - 1
    assert max(layout.references) == most
    assert len(layout.references) == 1 + -(-64 // most)


def test_in_order_places_ascend_without_gaps():
    layout = Layout(8 * 4 * KiB, Qcow2Options(cluster_size=4 * KiB))
    whole = 4 * KiB
    assert layout.place(Extent(0, 3 * whole), [whole, 0, whole]) == [whole, 2 * whole]
    assert layout.place(Extent(3 * whole, whole), [whole]) == [3 * whole]


@pytest.mark.parametrize("made", [Qcow2Options(preallocation="metadata"), Qcow2Options(data_file="d")])
def test_what_has_its_place_from_the_beginning_gets_it_again_and_again(made):
    layout = Layout(4 * 64 * KiB, made)
    base = 0 if made.data_file else 64 * KiB
    for _ in range(2):
        extent = Extent(64 * KiB, 2 * 64 * KiB)
        assert layout.place(extent, [0, 64 * KiB]) == [base + 2 * 64 * KiB]


def test_a_raw_data_file_maps_every_cluster():
    layout = Layout(3 * 64 * KiB - 512, Qcow2Options(data_file="d", data_file_raw=True))
    assert list(layout.tables[0][:4]) == [entries.COPIED, entries.COPIED | 64 * KiB, entries.COPIED | 128 * KiB, 0]
    assert list(layout.references) == [1]


def test_zeros_are_marked_where_the_backing_file_would_show():
    whole = 64 * KiB
    layout = Layout(4 * whole, Qcow2Options(backing_file="b"), backing_size=2 * whole)
    layout.passed(Extent(0, whole, Kind.UNALLOCATED))
    layout.passed(Extent(whole, 3 * whole, Kind.ZERO))
    assert list(layout.tables[0][:4]) == [0, entries.ZERO, 0, 0]


def test_subclusters_that_are_not_written_are_zeros_over_a_backing_file():
    whole = 64 * KiB
    made = Qcow2Options(extended_l2=True, backing_file="b")
    for size, zeros in ((2 * whole, 0xFFFFFFFE), (0, 0)):
        layout = Layout(2 * whole, made, backing_size=size)
        layout.wrote(Extent(0, whole), [whole], layout.place(Extent(0, whole), [whole]), [1])
        assert list(layout.tables[0][:2]) == [entries.COPIED | whole, zeros << 32 | 1]


@given(st.integers(0, 6), st.lists(st.integers(0, 1), min_size=1, max_size=100), st.integers(1, 100))
def test_counts_are_packed_from_the_low_bits_up(order, counts, first):
    per_block = 512 * 8 >> order
    counts = counts[:per_block]
    block = packed(array("H", counts), order, per_block)
    assert len(block) == 512
    bits = 1 << order
    for index, count in enumerate(counts):
        if bits < 8:
            found = block[index * bits // 8] >> (index * bits % 8) & ((1 << bits) - 1)
        else:
            found = int.from_bytes(block[index * bits // 8 : (index + 1) * bits // 8], "big")
        assert found == count
    patched = bytearray(b"\xff" * 512)
    for index in range(per_block):
        put(patched, order, index, counts[index] if index < len(counts) else 0)
    assert patched == block
    assert not_zero(block, order, min(first, per_block)) == sum(counts[:first])


def test_zeros_over_a_backing_file_in_a_preallocated_image_keep_their_room():
    made = Qcow2Options(extended_l2=True, preallocation="metadata", backing_file="b", backing_fmt="raw")
    whole = made.cluster_size
    layout = Layout(4 * whole, made, backing_size=3 * whole)
    before = list(layout.tables[0][:8])
    layout.passed(Extent(whole, whole, Kind.ZERO))
    layout.passed(Extent(2 * whole, whole, Kind.UNALLOCATED))
    layout.passed(Extent(3 * whole, whole, Kind.ZERO))
    every_part = (1 << 32) - 1
    assert list(layout.tables[0][:8]) == [*before[:2], before[2], every_part << 32, *before[4:]]
    assert list(layout.references[1:5]) == [1, 1, 1, 1]
