"""Who of other hosts takes part, and who is taken for stopped."""

from __future__ import annotations

from mpconv.coordination.remote_roster import RemoteRoster


def names(guests: RemoteRoster) -> list[str]:
    return [guest.name for guest in guests]


def test_who_was_silent_for_three_fences_has_stopped_and_its_name_never_comes_back():
    guests = RemoteRoster(30)
    for name in ("a", "b"):
        assert guests.hello(name, "host/1", ord(name), 0) is not None
    for now in range(0, 32, 2):
        assert guests.heard("a", now) is not None
        assert [guest.name for guest in guests.silent(now)] == [], now
    guests.heard("a", 30.5)
    [silent] = guests.silent(30.5)
    assert str(silent) == "worker 98 on host"
    guests.ended("b")
    assert names(guests) == ["a"]
    assert guests.heard("b", 31) is None
    assert guests.hello("b", "host/1", 98, 31) is None
    assert guests.hello("c", "host/1", 99, 31) is not None


def test_when_the_coordinator_did_not_run_everybody_was_heard_just_now():
    guests = RemoteRoster(30)
    guests.hello("a", "host/1", 1, 0)
    assert guests.silent(1) == []
    assert guests.silent(1000) == []
    for now in range(1001, 1031):
        assert guests.silent(now) == []
    assert [guest.name for guest in guests.silent(1031)] == ["a"]


def test_its_host_knows_who_is_dead_and_no_other_host_does():
    guests = RemoteRoster(30)
    guests.hello("a", "host/1", 1, 0)
    guests.hello("b", "host/1", 2, 0)
    guests.hello("c", "other/2", 1, 0)
    new = guests.hello("d", "host/1", 3, 1)
    assert [guest.name for guest in guests.outlived(new, [1, 7])] == ["a"]


def test_those_of_a_host_are_found_by_their_numbers():
    guests = RemoteRoster(30)
    for name, host, number in (("a", "host/1", 1), ("b", "host/1", 2), ("c", "other/2", 1)):
        guests.hello(name, host, number, 0)
    assert [guest.name for guest in guests.of("host/1", [1, 3])] == ["a"]


def test_another_name_of_the_same_worker_was_never_answered():
    guests = RemoteRoster(30)
    guests.hello("a", "host/1", 1, 0)
    assert [guest.name for guest in guests.outlived(guests.hello("b", "host/1", 1, 1), [])] == ["a"]


def test_a_name_of_a_host_cannot_steer_a_terminal():
    guests = RemoteRoster(30)
    assert str(guests.hello("a", "\x1b[2J/1", 1, 0)) == "worker 1 on \\x1b[2J"
