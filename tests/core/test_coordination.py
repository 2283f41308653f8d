"""The state machine by plain values."""

from __future__ import annotations

import pytest

from mpconv.core import state as c
from mpconv.core.sequence import Order
from mpconv.model.extent import Extent, Kind

MiB = 1 << 20


def state(size: int, **options: object) -> c.CoordinatorState:
    made = c.CoordinatorState(size, **{"order": Order.FREE, "zero_initialised": False, "buffer_size": MiB, **options})
    made.handle(c.StatusFound((Extent(0, size),)), 0)
    return made


def test_out_of_order_the_lease_carries_its_token():
    machine = state(MiB)
    assert machine.handle(c.LeaseWanted("a"), 0) == [c.Grant("a", 1, Extent(0, MiB), True)]
    assert machine.handle(c.LeaseDone("a", 1, 0), 1) == [c.AskFlush("a")]
    assert machine.handle(c.Flushed("a"), 2) == [c.Durable((Extent(0, MiB),), 0), c.Finish()]
    machine.check_invariants()


def test_in_order_tokens_ascend_one_at_a_time():
    machine = state(2 * MiB, order=Order.ASCENDING, lease_size=MiB)
    machine.handle(c.LeaseWanted("a"), 0)
    machine.handle(c.LeaseWanted("b"), 0)
    assert machine.handle(c.TokenWanted("b", 2), 1) == []
    assert machine.handle(c.TokenWanted("a", 1), 1) == [c.GiveToken("a", 1)]
    assert machine.handle(c.LeaseDone("a", 1, 0), 2) == [c.GiveToken("b", 2)]
    machine.check_invariants()


def test_a_stale_epoch_changes_nothing():
    machine = state(MiB)
    machine.handle(c.LeaseWanted("a"), 0)
    machine.handle(c.WorkerDead("a"), 1)
    assert machine.handle(c.LeaseWanted("b"), 2) == [c.Grant("b", 2, Extent(0, MiB), True)]
    assert machine.handle(c.LeaseDone("a", 1, 0), 3) == []
    assert machine.handle(c.LeaseDone("b", 1, 0), 3) == []
    assert (machine.bytes_done, machine.stale) == (0, 2)


def test_in_order_what_a_dead_worker_held_or_did_not_flush_goes_to_those_that_want_lowest_first():
    machine = state(4 * MiB, order=Order.ASCENDING, lease_size=MiB)
    for worker in ("a", "a", "b", "a"):
        machine.handle(c.LeaseWanted(worker), 0)
    machine.handle(c.TokenWanted("b", 3), 1)
    machine.handle(c.TokenWanted("a", 1), 1)
    machine.handle(c.LeaseDone("a", 1, 0), 2)
    machine.handle(c.LeaseWanted("b"), 2)
    undone = c.Undone((Extent(0, MiB),))
    assert machine.handle(c.WorkerDead("a"), 3) == [undone, c.Grant("b", 5, Extent(0, MiB), False)]
    assert machine.bytes_done == 0
    assert machine.handle(c.LeaseWanted("c"), 4) == [c.Grant("c", 6, Extent(MiB, MiB), False)]
    assert machine.handle(c.TokenWanted("c", 6), 5) == [c.GiveToken("c", 6)], "what is written again holds nobody up"
    assert machine.handle(c.TokenWanted("b", 5), 5) == []
    assert machine.handle(c.LeaseDone("c", 6, 0), 6) == [c.GiveToken("b", 5)]
    assert machine.handle(c.LeaseDone("b", 5, 0), 7) == [c.GiveToken("b", 3)]
    machine.check_invariants()


@pytest.mark.parametrize("lost", [c.WorkerDead("a"), c.Restarted("a")])
def test_the_job_does_not_end_while_what_a_lost_worker_sent_may_land(lost):
    machine = state(MiB, settle_seconds=2)
    machine.handle(c.LeaseWanted("a"), 0)
    machine.handle(lost, 1)
    machine.handle(c.LeaseWanted("b"), 1)
    assert machine.handle(c.LeaseDone("b", 2, 0), 1.5) == [c.AskFlush("b")]
    assert machine.handle(c.Flushed("b"), 2) == [c.Durable((Extent(0, MiB),), 0)]
    assert machine.handle(c.Tick(), 2.9) == []
    assert machine.handle(c.Tick(), 3) == [c.Finish()]


def test_a_dead_worker_s_flush_is_not_waited_for():
    machine = state(MiB)
    machine.handle(c.LeaseWanted("a"), 0)
    assert machine.handle(c.LeaseDone("a", 1, 0), 1) == [c.AskFlush("a")]
    assert machine.handle(c.WorkerDead("a"), 2) == [c.Undone((Extent(0, MiB),))]
    assert machine.handle(c.LeaseWanted("b"), 3) == [c.Grant("b", 2, Extent(0, MiB), True)]
    assert machine.handle(c.LeaseDone("b", 2, 0), 4) == [c.AskFlush("b")]
    assert machine.handle(c.Flushed("b"), 5) == [c.Durable((Extent(0, MiB),), 0), c.Finish()]


@pytest.mark.parametrize("order", Order)
def test_expiry_without_a_token_frees_and_with_one_is_in_doubt(order):
    machine = state(MiB, order=order, lease_seconds=10)
    machine.handle(c.LeaseWanted("a"), 0)
    assert c.LostContact("a", in_doubt=order is Order.FREE) in machine.handle(c.Tick(), 11)
    granted = machine.handle(c.LeaseWanted("b"), 12)
    assert bool(granted) is (order is not Order.FREE)
    if order is Order.FREE:
        assert machine.handle(c.WorkerDead("a"), 13) == [c.Grant("b", 2, Extent(0, MiB), True)]
    machine.check_invariants()


def test_zeros_on_a_zero_initialised_target_are_never_leased():
    machine = c.CoordinatorState(3 * MiB, order=Order.ASCENDING, zero_initialised=True)
    zeros = Extent(0, 3 * MiB, Kind.ZERO)
    assert machine.handle(c.StatusFound((zeros,)), 0) == [c.Passed(zeros), c.Finish()]
    assert machine.bytes_zero == 3 * MiB


def test_zeros_behind_what_lies_below_are_never_leased_and_no_lease_goes_across():
    machine = c.CoordinatorState(4 * MiB, order=Order.ASCENDING, zero_initialised=False, zeros_from=MiB)
    found = Extent(0, 3 * MiB, Kind.ZERO), Extent(3 * MiB, MiB)
    assert machine.handle(c.StatusFound(found), 0) == []
    granted = [c.Grant("a", 1, Extent(0, MiB, Kind.ZERO), False), c.Passed(Extent(MiB, 2 * MiB, Kind.ZERO))]
    assert machine.handle(c.LeaseWanted("a"), 1) == granted
    machine = c.CoordinatorState(2 * MiB, order=Order.ASCENDING, zero_initialised=False, zeros_from=MiB)
    machine.handle(c.StatusFound((Extent(0, 2 * MiB),)), 0)
    [grant] = machine.handle(c.LeaseWanted("a"), 1)
    assert grant.extent == Extent(0, MiB)


def test_following_what_came_back_is_joined_with_what_was_never_given_behind_it():
    """The token of the two is given as any other's: nothing is left out below, and what is new is its end."""
    machine = c.CoordinatorState(4 * MiB, order=Order.FOLLOWING, zero_initialised=False)
    for epoch in (1, 2):
        machine.handle(c.StatusFound((Extent((epoch - 1) * MiB, MiB, Kind.ZERO),)), 0)
        machine.handle(c.LeaseWanted("a"), 0)
    assert machine.handle(c.TokenWanted("a", 1), 1) == [c.GiveToken("a", 1)]
    assert machine.handle(c.Restarted("a"), 2) == []
    assert machine.handle(c.LeaseWanted("a"), 3) == [c.Grant("a", 3, Extent(0, 2 * MiB, Kind.ZERO), False)]
    assert machine.handle(c.TokenWanted("a", 3), 3) == [c.GiveToken("a", 3)]
    machine.handle(c.StatusFound((Extent(2 * MiB, 2 * MiB),)), 4)
    [after] = machine.handle(c.LeaseWanted("a"), 4)
    assert machine.handle(c.TokenWanted("a", after.epoch), 4) == [c.GiveToken("a", after.epoch)]
    machine.check_invariants()


@pytest.mark.parametrize("order", Order)
def test_what_is_left_to_the_backing_file_is_passed_and_other_zeros_are_written(order):
    machine = c.CoordinatorState(
        3 * MiB, order=order, zero_initialised=False, leaves_unallocated=True, buffer_size=MiB, lease_size=MiB
    )
    extents = Extent(0, MiB, Kind.UNALLOCATED), Extent(MiB, MiB, Kind.ZERO), Extent(2 * MiB, MiB, Kind.UNALLOCATED)
    assert machine.handle(c.StatusFound(extents), 0) == [c.Passed(extents[0])]
    free = order is Order.FREE
    granted = [c.Grant("a", 1, extents[1], free), c.Passed(extents[2])]
    assert machine.handle(c.LeaseWanted("a"), 1) == granted
    assert machine.handle(c.TokenWanted("a", 1), 2) == ([] if free else [c.GiveToken("a", 1)])
    assert machine.handle(c.LeaseDone("a", 1, MiB), 3) == [c.AskFlush("a")]
    assert machine.handle(c.Flushed("a"), 4) == [c.Durable((extents[1],), MiB), c.Finish()]
    machine.check_invariants()


def test_following_a_dead_worker_s_leases_are_granted_and_given_again():
    machine = state(3 * MiB, order=Order.FOLLOWING, lease_size=MiB)
    for _ in range(3):
        machine.handle(c.LeaseWanted("a"), 0)
    assert machine.handle(c.TokenWanted("a", 2), 1) == []
    assert machine.handle(c.TokenWanted("a", 1), 1) == [c.GiveToken("a", 1), c.GiveToken("a", 2)]
    assert machine.handle(c.LeaseDone("a", 2, 0), 2) == []
    machine.handle(c.WorkerDead("a"), 3)
    for epoch in (4, 5, 6):
        [grant] = machine.handle(c.LeaseWanted("b"), 4)
        assert (grant.epoch, grant.extent.start) == (epoch, (epoch - 4) * MiB)
    assert machine.handle(c.TokenWanted("b", 6), 5) == [c.GiveToken("b", 6)], "all below it had a token once"
    machine.check_invariants()


def test_who_leaves_writes_what_it_may_and_is_let_go_once_that_is_durable():
    machine = state(4 * MiB, order=Order.ASCENDING, lease_size=MiB)
    for _ in range(3):
        machine.handle(c.LeaseWanted("a"), 0)
    machine.handle(c.TokenWanted("a", 1), 1)
    assert machine.handle(c.Leaving("a"), 2) == []
    assert machine.handle(c.LeaseWanted("a"), 2) == [], "it gets nothing more"
    assert machine.handle(c.LeaseWanted("b"), 3) == [c.Grant("b", 4, Extent(MiB, MiB), False)], "a had this one"
    assert machine.handle(c.LeaseDone("a", 1, 0), 4) == [c.AskFlush("a")]
    assert machine.handle(c.Flushed("a"), 5) == [c.Durable((Extent(0, MiB),), 0), c.LetGo("a")]
    assert machine.handle(c.WorkerDead("a"), 6) == []
    assert machine.bytes_done == MiB
    machine.check_invariants()


def test_in_order_what_must_be_written_first_is_granted_unasked_when_all_wait_for_it():
    machine = state(4 * MiB, order=Order.ASCENDING, lease_size=MiB)
    for worker in ("a", "b", "b"):
        machine.handle(c.LeaseWanted(worker), 0)
    machine.handle(c.TokenWanted("b", 2), 1)
    assert machine.handle(c.WorkerDead("a"), 2) == [c.Grant("b", 4, Extent(0, MiB), False)]
    assert machine.handle(c.TokenWanted("b", 4), 3) == [c.GiveToken("b", 4)]
    machine.check_invariants()
