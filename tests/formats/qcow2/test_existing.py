"""Host clusters of an image that existed before it is written into."""

from __future__ import annotations

import random
from array import array

import pytest

from mpconv.formats.qcow2.check.counts import Counts
from mpconv.formats.qcow2.check.owners import Books
from mpconv.formats.qcow2.entries import COPIED, ZERO
from mpconv.formats.qcow2.existing_layout import ExistingLayout
from mpconv.formats.qcow2.header import Header
from mpconv.model.extent import Extent, Kind

WHOLE = 64 * 1024


def counts(numbers: list[int]) -> Counts:
    made = Counts(max(1, len(numbers)), 1 << 20)
    for cluster, number in enumerate(numbers):
        made.add(cluster, 1, number)
    return made


def books(counted: list[int], stored: list[int] | None = None, per_block: int = 64) -> Books:
    stored = counted if stored is None else stored
    return Books(counts(counted), counts(stored), clusters=len(counted), per_block=per_block)


def _header(backing: str | None = None) -> Header:
    return Header(
        version=3,
        cluster_bits=16,
        size=4 * WHOLE,
        l1_size=1,
        l1_offset=WHOLE,
        refcount_table_offset=2 * WHOLE,
        refcount_table_clusters=1,
        backing_file=backing,
    )


def layout(
    references: list[int], table: list[int], *, stored: list[int] | None = None, backing: str | None = None
) -> ExistingLayout:
    entries = array("Q", bytes(WHOLE))
    entries[: len(table)] = array("Q", table)
    return ExistingLayout(
        4 * WHOLE,
        _header(backing),
        l1=array("Q", [COPIED | 4 * WHOLE]),
        tables={0: entries},
        books=books(references, stored),
        clusters=len(references),
        reads_as_zeros=False,
    )


def write(made: ExistingLayout, cluster: int) -> int:
    extent = Extent(cluster * WHOLE, WHOLE)
    [place] = made.place(extent, [WHOLE])
    made.wrote(extent, [WHOLE], [place], [])
    return place // WHOLE


def references(made: ExistingLayout) -> list[int]:
    return [made.books.references(cluster) for cluster in range(made.end // WHOLE)]


def test_alone_in_place_shared_and_new_somewhere_else():
    made = layout([1, 1, 1, 1, 1, 1, 2, 0], [COPIED | 5 * WHOLE, 6 * WHOLE])
    assert [write(made, cluster) for cluster in range(3)] == [5, 7, 8]
    assert references(made) == [1, 1, 1, 1, 1, 1, 1, 1, 1]


def test_what_a_dead_worker_wrote_is_written_again_to_another_new_cluster():
    made = layout([1, 1, 1, 1, 1], [])
    assert [write(made, 0), write(made, 0)] == [5, 6]
    assert references(made) == [1, 1, 1, 1, 1, 0, 1]


def test_in_place_only_by_the_word_of_the_entry_and_of_the_refcount_and_in_truth():
    assert write(layout([1] * 6, [5 * WHOLE]), 0) == 6
    assert write(layout([1] * 5 + [2], [COPIED | 5 * WHOLE, 5 * WHOLE], stored=[1] * 6), 0) == 6
    assert write(layout([1] * 6, [COPIED | 5 * WHOLE], stored=[1] * 5 + [2]), 0) == 6
    assert write(layout([1] * 6, [COPIED | 5 * WHOLE | ZERO]), 0) == 5
    assert write(layout([1] * 6, [COPIED]), 0) == 6


def test_refcounts_that_were_too_low_are_right_afterwards_and_leaks_stay_leaks():
    made = layout([1] * 5 + [3, 1], [5 * WHOLE, COPIED | 6 * WHOLE], stored=[1] * 6 + [3])
    assert write(made, 0) == 7
    made.passed(Extent(WHOLE, WHOLE, Kind.ZERO))
    assert list(made.books.changes(0)) == [(5, 1, 2), (6, 3, 2), (7, 0, 1)]


def test_what_has_a_refcount_is_not_free_also_behind_the_end_of_the_file():
    made = ExistingLayout(
        4 * WHOLE,
        _header(),
        l1=array("Q", [0]),
        tables={},
        books=books([1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 0, 0, 1]),
        clusters=4,
        reads_as_zeros=False,
    )
    assert [write(made, cluster) for cluster in range(4)] == [4, 7, 8, 10]
    assert made.take_for_tables(3) // WHOLE == 11


def test_zeros_where_nothing_is_stay_nothing_but_over_a_backing_file():
    for backing, entry in ((None, 0), ("base", ZERO)):
        made = layout([1] * 6, [0, COPIED | 5 * WHOLE], backing=backing)
        made.passed(Extent(0, 4 * WHOLE, Kind.ZERO))
        assert list(made.tables[0][:4]) == [entry, ZERO, entry, entry]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_taken_was_free_and_what_comes_next_is_what_the_end_says(seed: int):
    chance = random.Random(seed)
    stored = [chance.choice([0, 0, 1]) for _ in range(chance.randrange(1, 300))]
    clusters = chance.randrange(1, len(stored) + 1)
    made = books([0] * clusters, stored)
    layout_made = ExistingLayout(
        4 * WHOLE, _header(), l1=array("Q", [0]), tables={}, books=made, clusters=clusters, reads_as_zeros=False
    )
    taken: list[int] = []
    for _ in range(900):
        number = chance.choice([1, 1, 1, 2, 5])
        end = layout_made.end
        if chance.random() < 0.5:
            taken.append(layout_made.take_one() // WHOLE)
        else:
            at = layout_made.take(number)
            assert number > 1 or at == end
            taken += range(at // WHOLE, at // WHOLE + number)
    assert len(set(taken)) == len(taken)
    assert not any(stored[cluster] for cluster in taken if cluster < len(stored))
    assert {cluster for cluster in range(clusters) if not stored[cluster]} <= set(taken)


def test_changes_of_many_blocks():
    made = books([1] * 1000, per_block=64)
    for cluster in (0, 63, 64, 999, 5000):
        made.refer(cluster, 1)
    made.refer(500, 1)
    made.refer(500, -1)
    assert made.blocks() == [0, 1, 15, 78]
    assert list(made.changes(0)) == [(0, 1, 2), (63, 1, 2)]
    assert list(made.changes(78)) == [(5000 % 64, 0, 1)]
