"""Cursor, leases, flushes and sequence, each by itself."""

from __future__ import annotations

import pytest

from mpconv.core.cursor import Cursor
from mpconv.core.flushes import FlushBook
from mpconv.core.leases import TRANSITIONS, IllegalTransition, Lease, LeaseBook, LeaseState
from mpconv.core.sequence import Order, WriteSequence
from mpconv.model.errors import ProtocolError
from mpconv.model.extent import Extent, Kind

DATA, ZERO = Kind.DATA, Kind.ZERO


def fed(size: int, *extents: Extent) -> Cursor:
    cursor = Cursor(size)
    for extent in extents or (Extent(0, size),):
        cursor.feed(extent)
    return cursor


def take(cursor: Cursor, most: int = 1 << 60, boundary: int = 1) -> Extent | None:
    return cursor.take(lambda _: most, boundary)


# --- cursor


@pytest.mark.parametrize("extent", [Extent(1, 5), Extent(0, 11), Extent(5, 5)])
def test_the_cursor_takes_only_what_comes_next(extent):
    cursor = Cursor(10)
    with pytest.raises(ValueError, match="was due"):
        cursor.feed(extent)
    assert cursor.fed == 0


def test_the_cursor_refuses_an_extent_twice():
    cursor = fed(10, Extent(0, 5))
    with pytest.raises(ValueError, match="byte 5 of 10"):
        cursor.feed(Extent(0, 5))


def test_a_cut_falls_on_a_boundary():
    cursor = fed(100, Extent(0, 3, ZERO), Extent(3, 97))
    assert take(cursor) == Extent(0, 3, ZERO)
    assert take(cursor, 20, 8) == Extent(3, 16), "counted from the extent's own beginning"
    assert take(cursor, 20, 8) == Extent(19, 16)


def test_nothing_is_joined_across_a_seam():
    cursor = Cursor(40, seams=(20,))
    for start in (0, 10, 20, 30):
        cursor.feed(Extent(start, 10))
    assert cursor.ahead == 2
    assert [take(cursor) for _ in range(3)] == [Extent(0, 20), Extent(20, 20), None]


def test_a_limit_below_the_boundary_still_cuts():
    assert take(fed(100, Extent(0, 1, ZERO), Extent(1, 99)), 1, 8) == Extent(0, 1, ZERO)
    assert take(fed(100), 5, 8) == Extent(0, 5)


def test_neighbours_of_one_kind_are_joined_and_others_are_not():
    cursor = fed(40, Extent(0, 10), Extent(10, 10), Extent(20, 10, ZERO), Extent(30, 10))
    assert [take(cursor) for _ in range(4)] == [Extent(0, 20), Extent(20, 10, ZERO), Extent(30, 10), None]


def test_returned_extents_come_first_and_the_lowest_of_them_before_the_others():
    cursor = fed(100, Extent(0, 50), Extent(50, 50, ZERO))
    taken = [take(cursor, 10) for _ in range(5)]
    assert taken[4] == Extent(40, 10)
    for at in (30, 10):
        cursor.give_back(Extent(at, 10))
    cursor.give_back(Extent(20, 5, ZERO))
    assert cursor.peek() == Extent(10, 10)
    assert not cursor.exhausted
    found = [take(cursor, 7) for _ in range(6)]
    assert found == [
        Extent(10, 7),
        Extent(17, 3),
        Extent(20, 5, ZERO),
        Extent(30, 7),
        Extent(37, 3),
        Extent(50, 7, ZERO),
    ]


def test_returned_neighbours_are_joined():
    cursor = fed(100)
    for _ in range(10):
        take(cursor, 10)
    for at in (40, 60, 50):
        cursor.give_back(Extent(at, 10))
    assert cursor.extents() == [Extent(40, 30)]
    assert take(cursor, 25) == Extent(40, 25)
    assert take(cursor) == Extent(65, 5)
    assert cursor.exhausted


def test_exhausted_only_when_all_was_fed_and_taken():
    assert Cursor(0).exhausted
    cursor = Cursor(10)
    assert not cursor.exhausted and cursor.peek() is None and take(cursor) is None
    cursor.feed(Extent(0, 5))
    take(cursor)
    assert not cursor.exhausted
    cursor.feed(Extent(5, 5))
    assert cursor.waiting == 5 and not cursor.exhausted
    take(cursor)
    assert cursor.waiting == 0 and cursor.exhausted


# --- leases


@pytest.mark.parametrize("before", LeaseState)
@pytest.mark.parametrize("after", LeaseState)
def test_only_the_table_s_transitions_are_taken(before, after):
    lease = Lease(7, Extent(0, 1), "a", 0.0, state=before, story=[(1.5, before)])
    if after in TRANSITIONS[before]:
        lease.move(after, 2)
        assert lease.story == [(1.5, before), (2, after)]
        return
    with pytest.raises(IllegalTransition, match=f"lease 7 .*{before.value} -> {after.value} .*at 1.500"):
        lease.move(after, 2)
    assert lease.state is before and len(lease.story) == 1


def test_what_a_worker_did_wrong_is_its_protocol_error():
    assert issubclass(IllegalTransition, ProtocolError)


def test_epochs_are_never_used_twice():
    book = LeaseBook(10)
    seen = set()
    for _ in range(5):
        lease = book.grant(Extent(0, 1), "a", 0)
        seen.add(lease.epoch)
        book.end(lease, 0)
        assert book.current(lease.epoch, "a") is None
    assert len(seen) == 5 and not book.live and book.of("a") == []


def test_only_its_own_worker_speaks_for_a_lease():
    book = LeaseBook(10)
    lease = book.grant(Extent(0, 1), "a", 0)
    assert book.current(lease.epoch, "a") is lease
    assert book.current(lease.epoch, "b") is None
    assert book.current(lease.epoch + 1, "a") is None


def test_a_sign_of_life_renews_the_worker_s_own_leases():
    book = LeaseBook(10)
    mine, other = book.grant(Extent(0, 1), "a", 0), book.grant(Extent(1, 1), "b", 0)
    book.renew("a", 5)
    book.renew("nobody", 5)
    assert book.overdue(10) == []
    assert book.overdue(11) == [other]
    assert book.overdue(15.5) == [mine, other]


def test_a_lease_in_doubt_is_not_overdue_again_and_nobody_speaks_for_it():
    book = LeaseBook(10)
    lease = book.grant(Extent(0, 1), "a", 0)
    lease.move(LeaseState.COMMITTING, 1)
    lease.move(LeaseState.IN_DOUBT, 11)
    assert book.overdue(100) == [] and book.current(lease.epoch, "a") is None
    assert book.of("a") == [lease]


# --- flushes


def test_a_flush_covers_what_was_written_before_it_was_asked_for():
    book = FlushBook(10)
    book.wrote("a", Extent(0, 10), 3)
    assert book.ask(0) == ["a"]
    book.wrote("a", Extent(10, 10), 0)
    assert book.ask(0) == []
    book.flushed("a")
    assert not book.all_durable
    [lost] = book.lose("a")
    assert list(lost.extents()) == [Extent(10, 10)] and lost.zeros == 0
    assert book.all_durable


def test_a_dead_worker_loses_what_it_was_flushing_too():
    book = FlushBook(10)
    book.wrote("a", Extent(0, 10), 3)
    book.wrote("b", Extent(20, 10), 0)
    book.ask(0)
    book.wrote("a", Extent(10, 10, ZERO), 10)
    lost = book.lose("a")
    assert [list(batch.extents()) for batch in lost] == [[Extent(0, 10)], [Extent(10, 10, ZERO)]]
    assert (sum(batch.bytes for batch in lost), sum(batch.zeros for batch in lost)) == (20, 13)
    assert book.lose("a") == [] and not book.all_durable


def test_an_answer_to_nothing_changes_nothing():
    book = FlushBook(10)
    book.wrote("a", Extent(0, 10), 0)
    book.flushed("a")
    assert book.ask(0) == ["a"]


def test_what_is_written_in_a_row_takes_one_range():
    book = FlushBook(10)
    for at in range(0, 1000, 10):
        book.wrote("a", Extent(at, 10), 0)
    [batch] = book.batches()
    assert list(batch.extents()) == [Extent(0, 1000)]


def test_a_late_flush_is_told_once_unless_the_worker_lives():
    book = FlushBook(10)
    book.wrote("a", Extent(0, 10), 0)
    book.ask(0)
    book.renew("a", 5)
    assert book.overdue(12) == []
    assert book.overdue(16) == ["a"]
    assert book.overdue(1000) == []
    book.renew("a", 1000)
    assert book.overdue(1011) == ["a"]


# --- sequence


def test_the_watermark_is_the_end_of_what_is_written_without_a_gap():
    sequence = WriteSequence(Order.FREE)
    marks = []
    for start, length in [(20, 10), (10, 5), (0, 10), (0, 5), (15, 5), (30, 1)]:
        sequence.written(Extent(start, length))
        marks.append(sequence.watermark)
    assert marks == [0, 0, 15, 15, 30, 31]
    assert sequence.was_written(3, 31) and not sequence.was_written(3, 32) and sequence.was_written(99, 99)


def test_the_lowest_ready_lease_at_the_watermark_is_next_and_only_one_at_a_time():
    sequence = WriteSequence(Order.ASCENDING)
    for epoch, start in [(1, 20), (2, 0), (3, 10)]:
        sequence.ready(epoch, Extent(start, 10))
    assert (sequence.next(), sequence.next()) == (2, None)
    sequence.release(2)
    assert sequence.next() is None, "its bytes are not written"
    sequence.written(Extent(0, 10))
    assert sequence.next() == 3
    sequence.written(Extent(10, 10))
    assert sequence.next() is None, "epoch 3 still holds the token"
    sequence.release(3)
    assert sequence.next() == 1


def test_bytes_below_the_watermark_are_written_again_at_any_time():
    sequence = WriteSequence(Order.ASCENDING)
    sequence.written(Extent(0, 100))
    sequence.ready(1, Extent(100, 10))
    sequence.ready(2, Extent(40, 10))
    assert sequence.next() == 2


def test_to_be_ready_twice_changes_nothing():
    sequence = WriteSequence(Order.ASCENDING)
    for _ in range(2):
        sequence.ready(1, Extent(0, 10))
    assert sequence.next() == 1
    sequence.ready(1, Extent(0, 10))
    sequence.written(Extent(0, 10))
    sequence.release(1)
    assert sequence.next() is None


def test_a_lease_that_ended_while_it_waited_gets_no_token():
    sequence = WriteSequence(Order.ASCENDING)
    sequence.ready(1, Extent(0, 10))
    sequence.release(1)
    sequence.ready(2, Extent(0, 10))
    assert sequence.next() == 2


def test_who_asks_for_places_gets_its_token_at_once():
    sequence = WriteSequence(Order.ASKED)
    for epoch, start in [(1, 20), (2, 500), (3, 0)]:
        sequence.ready(epoch, Extent(start, 10))
        assert (sequence.next(), sequence.next()) == (epoch, None)


def test_following_a_lease_need_not_wait_for_the_one_below_it_to_be_written():
    sequence = WriteSequence(Order.FOLLOWING)
    for epoch, start in [(1, 20), (2, 0), (3, 40)]:
        sequence.ready(epoch, Extent(start, 10))
    assert (sequence.next(), sequence.next()) == (2, None)
    sequence.ready(4, Extent(10, 10))
    assert [sequence.next() for _ in range(3)] == [4, 1, None], "from 30 to 40 nobody writes yet"
    sequence.written(Extent(30, 10))
    assert (sequence.next(), sequence.next()) == (3, None)
    assert sequence.watermark == 0, "nothing but those ten bytes is written"


def test_following_what_is_written_again_waits_for_nothing():
    sequence = WriteSequence(Order.FOLLOWING)
    for epoch, start in [(1, 0), (2, 10)]:
        sequence.ready(epoch, Extent(start, 10))
        assert sequence.next() == epoch
        sequence.release(epoch)
    sequence.ready(3, Extent(20, 10))
    sequence.ready(4, Extent(10, 10))
    assert [sequence.next() for _ in range(3)] == [4, 3, None]
