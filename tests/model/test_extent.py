"""Extents and sets of bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.extent import Extent, Kind, merged
from mpconv.model.ranges import Ranges, WholeBlocks

spans = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda x: (x[0], x[0] + x[1]))


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (0, -1)])
def test_no_such_extent(start, length):
    with pytest.raises(ValueError, match="not an extent"):
        Extent(start, length)


def test_split():
    assert Extent(10, 10, Kind.ZERO).split(13) == (Extent(10, 3, Kind.ZERO), Extent(13, 7, Kind.ZERO))
    for outside in (10, 20, 0):
        with pytest.raises(ValueError, match="not an extent"):
            Extent(10, 10).split(outside)


@given(spans, spans)
def test_overlaps(one, other):
    first, second = (Extent(start, end - start) for start, end in (one, other))
    assert first.overlaps(second) == bool(set(range(*one)) & set(range(*other)))
    assert first.overlaps(second) == second.overlaps(first)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(Kind), st.booleans()), max_size=20))
def test_merged_holds_the_same_bytes_in_the_fewest_extents(parts):
    extents, at = [], 0
    for length, kind, gap in parts:
        at += gap
        extents.append(Extent(at, length, kind))
        at += length
    found = list(merged(extents))
    as_bytes = [[(byte, e.kind) for e in some for byte in range(e.start, e.end)] for some in (extents, found)]
    assert as_bytes[0] == as_bytes[1]
    for before, after in itertools.pairwise(found):
        assert before.end < after.start or before.kind is not after.kind


def check(ranges: Ranges, model: set[int]) -> None:
    assert {byte for start, end in ranges for byte in range(start, end)} == model
    listed = list(ranges)
    assert len(listed) == len(ranges)
    for (_, end), (start, _) in itertools.pairwise(listed):
        assert end < start, "they neither overlap nor touch"


@given(st.lists(spans | st.integers(1, 30), max_size=30), spans)
def test_ranges_are_a_set_of_bytes(steps, asked):
    """A pair is added; a number is how many bytes at the front are cut off."""
    ranges, model = Ranges(), set()
    for step in steps:
        if isinstance(step, tuple):
            ranges.add(*step)
            model |= set(range(*step))
        elif model:
            start, end = ranges.first
            assert start == min(model)
            at = min(end, start + step)
            ranges.cut_front(at)
            model -= set(range(start, at))
        check(ranges, model)
    assert ranges.covers(*asked) == (set(range(*asked)) <= model)


def test_an_empty_set_has_no_first_range():
    with pytest.raises(IndexError):
        _ = Ranges().first
    with pytest.raises(IndexError):
        Ranges().cut_front(1)
    assert not Ranges() and not Ranges().covers(0, 1)


parts = st.lists(st.tuples(st.integers(1, 20), st.sampled_from(list(Kind))), min_size=1, max_size=12)


@given(parts, st.sampled_from([1, 2, 4, 8]), st.integers(1, 3))
def test_whole_blocks_lose_no_data_and_share_no_block(lengths, block, at_a_time):
    extents, at = [], 0
    for length, kind in lengths:
        extents.append(Extent(at, length, kind))
        at += length
    blocks = WholeBlocks(block, at)
    found = [
        extent
        for first in range(0, len(extents), at_a_time)
        for extent in blocks.feed(extents[first : first + at_a_time])
    ]
    assert [extent.start for extent in found] == [0, *(extent.end for extent in found[:-1])] and found[-1].end == at
    assert all(extent.end % block == 0 for extent in found[:-1])
    for start in range(0, at, block):
        whole = Extent(start, min(block, at - start))
        inside = {other.kind for other in extents if other.overlaps(whole)}
        [told] = [extent.kind for extent in found if extent.overlaps(whole)]
        assert told is (inside.pop() if len(inside) == 1 else Kind.DATA)
