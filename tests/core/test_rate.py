"""The rate of writing: by itself, and in the state machine."""

from __future__ import annotations

import pytest

from mpconv.core.events import Grant, LeaseDone, LeaseWanted, RateLimited, StatusFound, Tick
from mpconv.core.rate import Rate
from mpconv.core.sequence import Order
from mpconv.core.state import CoordinatorState
from mpconv.model.extent import Extent, Kind


def test_bytes_are_paid_for_before_they_are_written():
    rate = Rate(100)
    assert rate.ready_at(50, 10.0) == 10.5
    rate.pay(50, 10.5)
    assert rate.ready_at(100, 10.5) == 11.5


def test_idle_time_is_not_saved_up():
    rate = Rate(100)
    rate.pay(100, 10.0)
    rate.pay(100, 60.0)
    assert rate.ready_at(100, 60.0) == 61.0


def test_what_was_not_written_is_given_back():
    rate = Rate(100)
    rate.pay(100, 10.0)
    rate.give_back(100)
    assert rate.ready_at(100, 10.0) == 11.0


def test_what_is_read_from_a_limited_server_is_not_given_back():
    rate = Rate(100, refunds=False)
    rate.pay(100, 10.0)
    rate.give_back(100)
    assert rate.ready_at(100, 10.0) == 12.0


def test_a_limit_may_be_set_changed_and_taken_away_meanwhile():
    made = CoordinatorState(1 << 20, order=Order.FREE, zero_initialised=False, buffer_size=1024, lease_size=1024)
    made.handle(StatusFound((Extent(0, 1 << 20, Kind.DATA),)), 0.0)

    def granted(now: float, *events: object) -> int:
        return sum(isinstance(action, Grant) for event in events for action in made.handle(event, now))

    assert granted(0, *[LeaseWanted("w")] * 4) == 4
    assert granted(0, RateLimited(1024, False), LeaseWanted("w"), LeaseWanted("w")) == 0
    assert made.wake_at == 1.0
    assert granted(1, Tick()) == 1
    assert granted(1, RateLimited(4096, True)) == 0
    assert made.wake_at == 1.25
    assert granted(1.25, Tick()) == 1
    assert granted(1.25, RateLimited(0, True), *[LeaseWanted("w")] * 9) == 9
    made.check_invariants()


def drive(state: CoordinatorState, *, zeros: int = 0) -> list[tuple[float, Extent]]:
    """One worker that writes at once: when each lease was granted. The clock jumps to where the state wants a tick."""
    now, granted = 0.0, []
    actions = state.handle(LeaseWanted("w"), now)
    while not state.finished:
        grants = [action for action in actions if isinstance(action, Grant)]
        if not grants:
            assert state.wake_at is not None and state.wake_at > now
            now = state.wake_at
            actions = state.handle(Tick(), now)
            continue
        actions = []
        for grant in grants:
            granted.append((now, grant.extent))
            actions += state.handle(LeaseDone("w", grant.epoch, min(zeros, grant.extent.length)), now)
            actions += state.handle(LeaseWanted("w"), now)
    return granted


def state(size: int, kind: Kind = Kind.DATA, **options: bool) -> CoordinatorState:
    made = CoordinatorState(
        size,
        **{"order": Order.FREE, "zero_initialised": False, "durable": False, **options},
        rate=5120,
        buffer_size=512,
    )
    made.handle(StatusFound((Extent(0, size, kind),)), 0.0)
    return made


def test_the_last_lease_is_granted_when_all_of_it_is_paid():
    granted = drive(state(25600))
    assert granted[-1][0] == pytest.approx(5.0)
    assert [extent.length for _, extent in granted] == [512] * 50, "single buffers: the same pieces as without a rate"


def test_zeros_that_are_written_count_too():
    assert drive(state(25600, Kind.ZERO))[-1][0] == pytest.approx(5.0)


def test_zeros_that_need_no_write_cost_nothing():
    made = state(25600, Kind.ZERO, zero_initialised=True)
    assert made.finished


def test_zeros_found_in_data_are_given_back_where_they_were_not_written():
    assert drive(state(25600, zero_initialised=True), zeros=256)[-1][0] == pytest.approx(2.5, abs=0.1)
    assert drive(state(25600), zeros=256)[-1][0] == pytest.approx(5.0)
