"""The state machine by example: events go in by `>>`, actions come out by `<<`. PROTOCOL.md quotes some of these."""

from __future__ import annotations

import pytest

from mpconv.core.events import (
    AskFlush,
    Durable,
    Finish,
    Flushed,
    GiveToken,
    Grant,
    LeaseDone,
    LeaseWanted,
    Leaving,
    LetGo,
    LostContact,
    Passed,
    Restarted,
    StatusFound,
    Tick,
    TokenWanted,
    Undone,
    WorkerDead,
)
from mpconv.core.sequence import Order
from mpconv.core.state import CoordinatorState
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import MiB
from tests.support.playbook import At, Playbook


def state(size: int, **options: object) -> CoordinatorState:
    """A job whose source is known: data from end to end."""
    made = CoordinatorState(size, **{"order": Order.FREE, "zero_initialised": False, "buffer_size": MiB, **options})
    assert made.handle(StatusFound((Extent(0, size),)), 0) == []
    return made


def test_out_of_order_the_lease_carries_its_token():
    assert (
        Playbook(state(MiB))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=True)
        >> At(1)
        >> LeaseDone("a", 1, zeros=0)
        << AskFlush("a")
        >> At(2)
        >> Flushed("a")
        << Durable((Extent(0, MiB),), zeros=0)
        << Finish()
    )


def test_in_order_tokens_ascend_one_at_a_time():
    assert (
        Playbook(state(2 * MiB, order=Order.ASCENDING, lease_size=MiB))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=False)
        >> LeaseWanted("b")
        << Grant("b", 2, Extent(MiB, MiB), token=False)
        >> At(1)
        >> TokenWanted("b", 2)  # the bytes below are not written yet
        >> TokenWanted("a", 1)
        << GiveToken("a", 1)
        >> At(2)
        >> LeaseDone("a", 1, zeros=0)
        << GiveToken("b", 2)
    )


def test_a_stale_epoch_changes_nothing():
    machine = state(MiB)
    assert (
        Playbook(machine)
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=True)
        >> At(1)
        >> WorkerDead("a")
        >> At(2)
        >> LeaseWanted("b")
        << Grant("b", 2, Extent(0, MiB), token=True)
        >> At(3)
        >> LeaseDone("a", 1, zeros=0)  # read after its death
        >> LeaseDone("b", 1, zeros=0)  # never its own
    )
    assert (machine.bytes_done, machine.stale) == (0, 2)


def test_in_order_what_a_dead_worker_held_or_did_not_flush_goes_to_those_that_want_lowest_first():
    machine = state(4 * MiB, order=Order.ASCENDING, lease_size=MiB)
    playbook = (
        Playbook(machine)
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=False)
        >> LeaseWanted("a")
        << Grant("a", 2, Extent(MiB, MiB), token=False)
        >> LeaseWanted("b")
        << Grant("b", 3, Extent(2 * MiB, MiB), token=False)
        >> LeaseWanted("a")
        << Grant("a", 4, Extent(3 * MiB, MiB), token=False)
        >> At(1)
        >> TokenWanted("b", 3)
        >> TokenWanted("a", 1)
        << GiveToken("a", 1)
        >> At(2)
        >> LeaseDone("a", 1, zeros=0)
        >> LeaseWanted("b")
        >> At(3)
        >> WorkerDead("a")
        << Undone((Extent(0, MiB),))
        << Grant("b", 5, Extent(0, MiB), token=False)
    )
    assert playbook
    assert machine.bytes_done == 0
    assert (
        playbook
        >> At(4)
        >> LeaseWanted("c")
        << Grant("c", 6, Extent(MiB, MiB), token=False)
        >> At(5)
        >> TokenWanted("c", 6)
        << GiveToken("c", 6)  # what is written again holds nobody up
        >> TokenWanted("b", 5)
        >> At(6)
        >> LeaseDone("c", 6, zeros=0)
        << GiveToken("b", 5)
        >> At(7)
        >> LeaseDone("b", 5, zeros=0)
        << GiveToken("b", 3)
    )


@pytest.mark.parametrize("lost", [WorkerDead("a"), Restarted("a")])
def test_the_job_does_not_end_while_what_a_lost_worker_sent_may_land(lost):
    assert (
        Playbook(state(MiB, settle_seconds=2))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=True)
        >> At(1)
        >> lost
        >> LeaseWanted("b")
        << Grant("b", 2, Extent(0, MiB), token=True)
        >> At(1.5)
        >> LeaseDone("b", 2, zeros=0)
        << AskFlush("b")
        >> At(2)
        >> Flushed("b")
        << Durable((Extent(0, MiB),), zeros=0)
        >> At(2.9)
        >> Tick()
        >> At(3)
        >> Tick()
        << Finish()
    )


def test_a_dead_worker_s_flush_is_not_waited_for():
    assert (
        Playbook(state(MiB))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=True)
        >> At(1)
        >> LeaseDone("a", 1, zeros=0)
        << AskFlush("a")
        >> At(2)
        >> WorkerDead("a")
        << Undone((Extent(0, MiB),))
        >> At(3)
        >> LeaseWanted("b")
        << Grant("b", 2, Extent(0, MiB), token=True)
        >> At(4)
        >> LeaseDone("b", 2, zeros=0)
        << AskFlush("b")
        >> At(5)
        >> Flushed("b")
        << Durable((Extent(0, MiB),), zeros=0)
        << Finish()
    )


@pytest.mark.parametrize("order", Order)
def test_expiry_without_a_token_frees_and_with_one_is_in_doubt(order):
    token = order is Order.FREE
    playbook = (
        Playbook(state(MiB, order=order, lease_seconds=10))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token)
        >> At(11)
        >> Tick()
        << LostContact("a", in_doubt=token)
        >> At(12)
        >> LeaseWanted("b")
    )
    if token:
        playbook = playbook >> At(13) >> WorkerDead("a")
    assert playbook << Grant("b", 2, Extent(0, MiB), token)


def test_zeros_on_a_zero_initialised_target_are_never_leased():
    machine = CoordinatorState(3 * MiB, order=Order.ASCENDING, zero_initialised=True)
    zeros = Extent(0, 3 * MiB, Kind.ZERO)
    assert Playbook(machine) >> StatusFound((zeros,)) << Passed(zeros) << Finish()
    assert machine.bytes_zero == 3 * MiB


def test_zeros_behind_what_lies_below_are_never_leased_and_no_lease_goes_across():
    assert (
        Playbook(CoordinatorState(4 * MiB, order=Order.ASCENDING, zero_initialised=False, zeros_from=MiB))
        >> StatusFound((Extent(0, 3 * MiB, Kind.ZERO), Extent(3 * MiB, MiB)))
        >> At(1)
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB, Kind.ZERO), token=False)
        << Passed(Extent(MiB, 2 * MiB, Kind.ZERO))
    )
    assert (
        Playbook(CoordinatorState(2 * MiB, order=Order.ASCENDING, zero_initialised=False, zeros_from=MiB))
        >> StatusFound((Extent(0, 2 * MiB),))
        >> At(1)
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=False)
    )


def test_following_what_came_back_is_joined_with_what_was_never_given_behind_it():
    """The token of the two is given as any other's: nothing is left out below, and what is new is its end."""
    assert (
        Playbook(CoordinatorState(4 * MiB, order=Order.FOLLOWING, zero_initialised=False))
        >> StatusFound((Extent(0, MiB, Kind.ZERO),))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB, Kind.ZERO), token=False)
        >> StatusFound((Extent(MiB, MiB, Kind.ZERO),))
        >> LeaseWanted("a")
        << Grant("a", 2, Extent(MiB, MiB, Kind.ZERO), token=False)
        >> At(1)
        >> TokenWanted("a", 1)
        << GiveToken("a", 1)
        >> At(2)
        >> Restarted("a")
        >> At(3)
        >> LeaseWanted("a")
        << Grant("a", 3, Extent(0, 2 * MiB, Kind.ZERO), token=False)
        >> TokenWanted("a", 3)
        << GiveToken("a", 3)
        >> At(4)
        >> StatusFound((Extent(2 * MiB, 2 * MiB),))
        >> LeaseWanted("a")
        << Grant("a", 4, Extent(2 * MiB, 2 * MiB), token=False)
        >> TokenWanted("a", 4)
        << GiveToken("a", 4)
    )


@pytest.mark.parametrize("order", Order)
def test_what_is_left_to_the_backing_file_is_passed_and_other_zeros_are_written(order):
    machine = CoordinatorState(
        3 * MiB, order=order, zero_initialised=False, leaves_unallocated=True, buffer_size=MiB, lease_size=MiB
    )
    extents = Extent(0, MiB, Kind.UNALLOCATED), Extent(MiB, MiB, Kind.ZERO), Extent(2 * MiB, MiB, Kind.UNALLOCATED)
    free = order is Order.FREE
    playbook = (
        Playbook(machine)
        >> StatusFound(extents)
        << Passed(extents[0])
        >> At(1)
        >> LeaseWanted("a")
        << Grant("a", 1, extents[1], token=free)
        << Passed(extents[2])
        >> At(2)
        >> TokenWanted("a", 1)
    )
    if not free:
        playbook = playbook << GiveToken("a", 1)
    assert (
        playbook
        >> At(3)
        >> LeaseDone("a", 1, zeros=MiB)
        << AskFlush("a")
        >> At(4)
        >> Flushed("a")
        << Durable((extents[1],), zeros=MiB)
        << Finish()
    )


def test_following_a_dead_worker_s_leases_are_granted_and_given_again():
    assert (
        Playbook(state(3 * MiB, order=Order.FOLLOWING, lease_size=MiB))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=False)
        >> LeaseWanted("a")
        << Grant("a", 2, Extent(MiB, MiB), token=False)
        >> LeaseWanted("a")
        << Grant("a", 3, Extent(2 * MiB, MiB), token=False)
        >> At(1)
        >> TokenWanted("a", 2)
        >> TokenWanted("a", 1)
        << GiveToken("a", 1)
        << GiveToken("a", 2)
        >> At(2)
        >> LeaseDone("a", 2, zeros=0)
        >> At(3)
        >> WorkerDead("a")
        << Undone((Extent(MiB, MiB),))
        >> At(4)
        >> LeaseWanted("b")
        << Grant("b", 4, Extent(0, MiB), token=False)
        >> LeaseWanted("b")
        << Grant("b", 5, Extent(MiB, MiB), token=False)
        >> LeaseWanted("b")
        << Grant("b", 6, Extent(2 * MiB, MiB), token=False)
        >> At(5)
        >> TokenWanted("b", 6)
        << GiveToken("b", 6)  # all below it had a token once
    )


def test_who_leaves_writes_what_it_may_and_is_let_go_once_that_is_durable():
    machine = state(4 * MiB, order=Order.ASCENDING, lease_size=MiB)
    assert (
        Playbook(machine)
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=False)
        >> LeaseWanted("a")
        << Grant("a", 2, Extent(MiB, MiB), token=False)
        >> LeaseWanted("a")
        << Grant("a", 3, Extent(2 * MiB, MiB), token=False)
        >> At(1)
        >> TokenWanted("a", 1)
        << GiveToken("a", 1)
        >> At(2)
        >> Leaving("a")
        >> LeaseWanted("a")  # it gets nothing more
        >> At(3)
        >> LeaseWanted("b")
        << Grant("b", 4, Extent(MiB, MiB), token=False)  # a had this one
        >> At(4)
        >> LeaseDone("a", 1, zeros=0)
        << AskFlush("a")
        >> At(5)
        >> Flushed("a")
        << Durable((Extent(0, MiB),), zeros=0)
        << LetGo("a")
        >> At(6)
        >> WorkerDead("a")
    )
    assert machine.bytes_done == MiB


def test_in_order_what_must_be_written_first_is_granted_unasked_when_all_wait_for_it():
    assert (
        Playbook(state(4 * MiB, order=Order.ASCENDING, lease_size=MiB))
        >> LeaseWanted("a")
        << Grant("a", 1, Extent(0, MiB), token=False)
        >> LeaseWanted("b")
        << Grant("b", 2, Extent(MiB, MiB), token=False)
        >> LeaseWanted("b")
        << Grant("b", 3, Extent(2 * MiB, MiB), token=False)
        >> At(1)
        >> TokenWanted("b", 2)
        >> At(2)
        >> WorkerDead("a")
        << Grant("b", 4, Extent(0, MiB), token=False)
        >> At(3)
        >> TokenWanted("b", 4)
        << GiveToken("b", 4)
    )
