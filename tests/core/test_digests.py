"""Sums of digests, against dictionaries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpconv.core.digests import Log, Sums
from mpconv.core.flushes import FlushBook
from mpconv.model.digest import BLOCK, MODULUS, REGION, packed, regions
from mpconv.model.extent import Extent

TiB = 1 << 40

starts = st.one_of(st.integers(0, 100), st.integers(0, 1 << 46)).map(lambda block: block * BLOCK)
lengths = st.integers(1, 5 * REGION // BLOCK).map(lambda blocks: blocks * BLOCK)
sums = st.dictionaries(st.integers(0, 5), st.integers(0, 1 << 140), max_size=6)


def shifted(start: int, length: int, drawn: dict[int, int]) -> dict[int, int]:
    """What was drawn, of the regions of a range."""
    return {
        start // REGION + at: value for at, value in drawn.items() if start // REGION + at in regions(start, length)
    }


@given(st.lists(st.tuples(starts, lengths, sums, st.booleans()), max_size=20))
def test_sums_are_of_what_was_added_and_not_taken_back(entries):
    found, expected, log = Sums(), {}, Log()
    for start, length, drawn, stays in entries:
        of = shifted(start, length, drawn)
        found.add(start, packed(start, length, of))
        if stays:
            for region, value in of.items():
                expected[region] = (expected.get(region, 0) + value) % MODULUS
        else:
            log.note(start, packed(start, length, of))
    for start, digests in log:
        found.take_back(start, digests)
    expected = {region: value for region, value in expected.items() if value}
    assert {region: found[region] for region in found.regions()} == expected
    assert list(found.regions()) == sorted(expected)
    assert found.total == sum(expected.values()) % MODULUS


names = st.sampled_from("abc")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("wrote"), names, starts, lengths, sums),
        st.tuples(st.sampled_from(["ask", "flushed", "lose"]), names),
    ),
    max_size=40,
)


@given(steps)
def test_what_a_worker_loses_is_what_no_answered_flush_covers(steps):
    """A flush covers what was reported before it was asked for, and nothing that came later."""
    book = FlushBook(30)
    unasked, asked = {}, {}
    for step in steps:
        match step:
            case ("wrote", worker, start, length, drawn):
                digests = packed(start, length, shifted(start, length, drawn))
                book.wrote(worker, Extent(start, length), 0, digests)
                unasked.setdefault(worker, []).append((start, digests))
            case ("ask", _):
                for worker in book.ask(0):
                    asked[worker] = unasked.pop(worker)
            case ("flushed", worker):
                batch = book.flushed(worker)
                covered = [entry for entry in asked.pop(worker, []) if entry[1]]
                assert ([] if batch is None else list(batch.digests)) == covered
            case ("lose", worker):
                lost = [entry for batch in book.lose(worker) for entry in batch.digests]
                expected = [*asked.pop(worker, []), *unasked.pop(worker, [])]
                assert lost == [entry for entry in expected if entry[1]]


def test_a_disk_of_exabytes_takes_the_memory_of_its_data():
    found = Sums()
    for start in (0, 1 << 62):
        found.add(start, packed(start, BLOCK, {start // REGION: 1}))
    assert list(found.regions()) == [0, (1 << 62) // REGION]
    assert sum(map(len, found._pages.values())) <= 2 * 65536
