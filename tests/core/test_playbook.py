"""A playbook fails when it should, and its error can be read."""

from __future__ import annotations

from unittest.mock import ANY

import pytest

from mpconv.core.events import AskFlush, Event, Flushed, Grant, LeaseDone, LeaseWanted, StatusFound, Tick
from mpconv.core.sequence import Order
from mpconv.core.state import CoordinatorState
from mpconv.model.errors import ProtocolError
from mpconv.model.extent import Extent
from tests.support.playbook import At, Playbook, all_asserted

WANTED = ">> LeaseWanted(worker='a')"
FIRST = Extent(0, 512)
GRANTED = f"<< {Grant('a', 1, FIRST, True)}"
DONE = ">> LeaseDone(worker='a', epoch=1, zeros=0, digests=b'')"


class Greedy(CoordinatorState):
    """Counts a byte too much with every lease that is done."""

    def handle(self, event: Event, now: float):
        actions = super().handle(event, now)
        self.bytes_done += isinstance(event, LeaseDone)
        return actions


def playbook(kind: type[CoordinatorState] = CoordinatorState, **options) -> Playbook:
    state = kind(512, order=Order.FREE, zero_initialised=False, **options)
    state.handle(StatusFound((FIRST,)), 0)
    return Playbook(state)


def story(play: Playbook) -> list[str]:
    """The lines of the error with which a playbook fails; those that only point at letters are left out."""
    with pytest.raises(AssertionError) as failure:
        bool(play)
    return [line for line in str(failure.value).splitlines() if not line.startswith("?")]


DIFFERS = "the state does not keep to the playbook (- expected, + actual):"


def test_what_comes_as_expected_passes_and_can_be_written_on():
    play = playbook() >> LeaseWanted("a") << Grant("a", 1, FIRST, True)
    assert play
    assert play.state.leases.live
    assert play >> LeaseDone("a", 1, 0) << AskFlush("a")


def test_a_wrong_action_is_shown_between_what_came_as_expected():
    play = playbook() >> LeaseWanted("a") << Grant("a", 1, FIRST, True) >> LeaseDone("a", 1, 0) << AskFlush("b")
    assert story(play) == [
        DIFFERS,
        f"  {WANTED}",
        f"  {GRANTED}",
        f"  {DONE}",
        "- << AskFlush(worker='b')",
        "+ << AskFlush(worker='a')",
    ]


def test_an_action_that_does_not_come_is_shown():
    play = playbook() >> LeaseWanted("a") << Grant("a", 1, FIRST, True) << AskFlush("a") >> Tick()
    assert story(play) == [DIFFERS, f"  {WANTED}", f"  {GRANTED}", "- << AskFlush(worker='a')"]


def test_an_action_that_nobody_expects_is_shown():
    play = playbook() >> At(2) >> LeaseWanted("a") >> LeaseDone("a", 1, 0) << AskFlush("a")
    assert story(play) == [DIFFERS, "  >> At(seconds=2)", f"  {WANTED}", f"+ {GRANTED}"]


def test_the_order_of_actions_counts():
    play = playbook() >> LeaseWanted("a") << ANY >> LeaseDone("a", 1, 0) << ANY >> Flushed("a") << ANY << AskFlush("a")
    assert story(play)[-2:] == ["- << AskFlush(worker='a')", "+ << Finish()"]


def test_a_broken_invariant_is_shown_after_the_event_that_broke_it():
    play = playbook(Greedy) >> LeaseWanted("a") << ANY >> LeaseDone("a", 1, 0) << AskFlush("a") >> Tick()
    headline, *lines = story(play)
    assert headline.startswith("an invariant is broken: ")
    assert lines[-3:] == [f"  {GRANTED}", f"  {DONE}", "  << AskFlush(worker='a')"]


def test_an_event_that_raises_shows_the_playbook_so_far():
    play = playbook() >> LeaseWanted("a") << ANY >> LeaseDone("a", 1, zeros=513)
    with pytest.raises(ProtocolError, match="513 bytes of zeros") as failure:
        bool(play)
    [note] = failure.value.__notes__
    assert note.splitlines()[1:] == [f"  {WANTED}", f"  {GRANTED}", f"  {DONE.replace('zeros=0', 'zeros=513')}"]


def test_a_field_that_does_not_matter_may_be_left_out():
    assert playbook() >> LeaseWanted("a") << Grant("a", ANY, ANY, True)
    assert story(playbook() >> LeaseWanted("a") << Grant("b", ANY, ANY, True))[-1] == f"+ {GRANTED}"


def test_the_clock_is_the_one_that_the_state_is_told():
    assert playbook(lease_seconds=10) >> LeaseWanted("a") << ANY >> At(9) >> Tick() >> At(11) >> Tick() << ANY


def test_a_playbook_that_nobody_asserts_to_its_end_fails():
    play = playbook() >> LeaseWanted("a")
    with pytest.raises(AssertionError, match="nobody asserted"):
        all_asserted()
    all_asserted()  # it was told once
    play = playbook() >> LeaseWanted("a") << ANY
    assert play
    play = play >> Tick() << AskFlush("a")
    with pytest.raises(AssertionError) as failure:
        all_asserted()
    assert str(failure.value).splitlines()[1:] == [">> Tick()", "<< AskFlush(worker='a')"]


def test_an_action_without_an_event_is_a_mistake():
    play = playbook()
    assert play
    with pytest.raises(ValueError, match="no event"):
        play = play << AskFlush("a")
