"""Sums of a buffer's blocks, against the definition."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.digest import BLOCK, MODULUS, REGION, text
from mpconv.workers.hashing import add_blocks
from tests.support.digests import block_digests, digest_of

pieces = st.lists(st.tuples(st.integers(1, 3 * BLOCK), st.sampled_from([b"\0", b"\x01", b"\0\xff"])), max_size=6)


def content_of(drawn: list[tuple[int, bytes]]) -> bytes:
    return b"".join((byte * length)[:length] for length, byte in drawn)


@given(drawn=pieces, first=st.sampled_from([0, 1, 30, 31, 32]))
def test_each_block_counts_in_its_region_by_its_number(drawn, first):
    content = content_of(drawn)
    sums = {}
    add_blocks(sums, first * BLOCK, memoryview(bytearray(content)))
    expected = {}
    for number, digest in block_digests(bytes(first * BLOCK) + content).items():
        region = number * BLOCK // REGION
        expected[region] = expected.get(region, 0) + digest
    assert sums == expected


@given(drawn=pieces, cuts=st.lists(st.integers(0, 20), max_size=4), data=st.data())
def test_cut_at_whole_blocks_in_any_order_it_is_the_digest(drawn, cuts, data):
    content = content_of(drawn)
    at = sorted({0, len(content), *(cut * BLOCK for cut in cuts if cut * BLOCK < len(content))})
    parts = data.draw(st.permutations(list(itertools.pairwise(at))))
    sums = {}
    for start, end in parts:
        add_blocks(sums, start, memoryview(bytearray(content[start:end])))
    assert text(len(content), sum(sums.values()) % MODULUS) == digest_of(content)


def test_blocks_that_change_places_and_blocks_that_shrink_are_seen():
    one, other = b"\x01" * BLOCK, b"\x02" * BLOCK
    contents = [one + other, other + one, one + one, one + one[:-1], one, one + bytes(9), bytes(9) + one]
    found = set()
    for content in contents:
        sums = {}
        add_blocks(sums, 0, memoryview(bytearray(content)))
        found.add(text(len(content), sum(sums.values()) % MODULUS))
    assert len(found) == len(contents)
