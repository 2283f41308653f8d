"""Who of a job's processes is killed, and when."""

from __future__ import annotations

import pytest

from mpconv.coordination.process_roster import SILENT_SECONDS, ProcessRoster
from mpconv.model.errors import WorkerLost


def looked_at(crew: ProcessRoster, start: float, end: float) -> dict[int, float]:
    """Each pid that is to be killed, and when, if somebody looks every second."""
    killed: dict[int, float] = {}
    now = start
    while now <= end:
        killed.update(dict.fromkeys(crew.silent(now), now))
        now += 1
    return killed


def crew_of(*pids: int) -> ProcessRoster:
    crew = ProcessRoster(len(pids))
    for pid in pids:
        crew.started(pid, 0)
    return crew


def test_who_is_silent_for_too_long_is_killed_once():
    crew = crew_of(1, 2)
    crew.hello("a", 1, 0)
    crew.hello("b", 2, 0)
    for now in range(0, 40, 2):
        crew.silent(now)
        crew.heard("a", now)
    assert looked_at(crew, 40, 50) == {}, "b was killed before"
    crew = crew_of(1)
    crew.hello("a", 1, 10)
    assert looked_at(crew, 11, 60) == {1: 10 + SILENT_SECONDS + 1}


def test_who_never_says_hello_is_killed_too():
    assert looked_at(crew_of(7), 0, 40) == {7: SILENT_SECONDS + 1}


def test_when_the_coordinator_itself_did_not_run_nobody_is_killed():
    crew = crew_of(1)
    crew.hello("a", 1, 0)
    assert looked_at(crew, 0, 3) == {}
    assert looked_at(crew, 1000, 1000 + SILENT_SECONDS) == {}
    assert looked_at(crew, 1001 + SILENT_SECONDS, 1002 + SILENT_SECONDS) == {1: 1001 + SILENT_SECONDS}


def test_what_does_not_end_when_it_is_killed_fails_the_job():
    crew = crew_of(1)
    with pytest.raises(WorkerLost, match=r"pid 1\) does not end"):
        looked_at(crew, 0, 100)


def test_who_let_a_lease_expire_is_killed_once():
    crew = crew_of(1)
    crew.hello("a", 1, 0)
    assert crew.doubted("a", 5) == 1
    assert crew.doubted("a", 6) is None
    assert looked_at(crew, 7, 34) == {}
    assert crew.ended(1) == "a"
    assert crew.doubted("a", 40) is None


def test_a_place_is_given_again_and_a_name_is_not():
    crew = crew_of(1, 2)
    assert [crew.hello("a", 1, 0).number, crew.hello("b", 2, 0).number] == [0, 1]
    assert crew.hello("a", 1, 1).number == 0, "it begins anew"
    assert crew.hello("c", 1, 1) is None, "a process has one name"
    assert crew.hello("a", 2, 1) is None
    assert crew.hello("d", 99, 1) is None, "nobody started it"
    assert crew.ended(1) == "a"
    assert not crew.heard("a", 2)
    assert crew.knew("a") and not crew.knew("d")
    crew.started(3, 2)
    assert crew.hello("e", 3, 2).number == 0
