"""Who begins next, and how processes and bandwidth are divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.jobs.fanout.schedule import Division, Entry, Flow, Schedule, divide
from mpconv.jobs.fanout.spec import Limits, server_of, workers_and_jobs


def entries(*priorities: int, retries: int = 1, patience: float = 0) -> list[Entry]:
    return [
        Entry(name=f"job{number}", number=number, priority=priority, retries=retries, delay=10, patience=patience)
        for number, priority in enumerate(priorities)
    ]


def begun(schedule: Schedule, now: float = 0) -> list[str]:
    names = []
    while (entry := schedule.next(now)) is not None:
        names.append(entry.name)
    return names


def test_the_highest_priority_begins_first_and_then_as_listed():
    schedule = Schedule(entries(0, 5, 0, 5), at_once=3)
    assert begun(schedule) == ["job1", "job3", "job0"]
    assert schedule.wake_at is None
    assert schedule.ended("job3", 1, again=False) is None
    assert begun(schedule, 1) == ["job2"]
    assert schedule.expected == 3 and not schedule.over


def test_what_failed_comes_after_the_others_and_later_each_time():
    schedule = Schedule(entries(9, 0, retries=2), at_once=1)
    assert begun(schedule) == ["job0"]
    assert schedule.ended("job0", 0, again=True) == 10
    assert begun(schedule, 100) == ["job1"]
    assert schedule.ended("job1", 100, again=True) == 10
    assert schedule.wake_at == 10
    assert begun(schedule, 100) == ["job0"]
    assert schedule.ended("job0", 100, again=True) == 20
    assert (begun(schedule, 109), schedule.wake_at) == ([], 110)
    assert begun(schedule, 110) == ["job1"]
    assert schedule.ended("job1", 110, again=False) is None
    assert begun(schedule, 120) == ["job0"]
    assert schedule.ended("job0", 120, again=True) is None
    assert schedule.over


def test_a_server_that_does_not_answer_costs_no_retry_for_a_while():
    schedule = Schedule(entries(0, retries=0, patience=60), at_once=1)
    for now in (0, 20, 40):
        assert begun(schedule, now) == ["job0"]
        assert schedule.ended("job0", now + 1, again=True, away=True) == 10
    assert begun(schedule, 100) == ["job0"]
    assert schedule.ended("job0", 101, again=True, away=True) is None
    assert schedule.over


def test_when_it_is_stopped_nothing_begins_any_more():
    schedule = Schedule(entries(0, 0, 0), at_once=1)
    assert begun(schedule) == ["job0"]
    assert schedule.stop() == ["job1", "job2"]
    assert begun(schedule) == [] and not schedule.over
    schedule.ended("job0", 0, again=False)
    assert schedule.over


@given(st.data())
def test_no_job_waits_for_a_process_and_none_is_given_twice(data):
    """Jobs begin, end and are tried again in any order."""
    total = data.draw(st.integers(1, 12))
    at_once = data.draw(st.integers(1, total))
    count = data.draw(st.integers(1, 12))
    wishes = data.draw(st.lists(st.integers(1, 8), min_size=count, max_size=count))
    schedule = Schedule(entries(*[0] * count, retries=1), at_once)
    division = Division(total)
    weights = {f"job{number}": 1 + number % 3 for number in range(count)}
    opening: list[str] = []
    now = 0.0
    while not schedule.over:
        opening += begun(schedule, now)
        if opening and data.draw(st.booleans()):
            name = opening.pop(data.draw(st.integers(0, len(opening) - 1)))
            assert division.share(name, wishes[int(name[3:])], schedule.expected) >= 1
        elif division.held or opening:
            name = data.draw(st.sampled_from(sorted([*division.held, *opening])))
            opening = [other for other in opening if other != name]
            division.release(name)
            schedule.ended(name, now, again=data.draw(st.booleans()))
        running = {name: weights[name] for name in division.held}
        division.more(running, schedule.expected)
        assert division.free >= 0
        assert all(1 <= held <= wishes[int(name[3:])] for name, held in division.held.items())
        now += 100
    assert division.held == {}


def test_the_last_one_gets_all_that_it_can_use():
    division = Division(8)
    assert [division.share(name, 6, 3) for name in "abc"] == [2, 3, 3]
    division.release("a")
    assert division.more({"b": 1, "c": 2}, expected=3) == {"c": 1}
    assert division.more({"b": 1, "c": 2}, expected=3) == {}
    division.release("b")
    assert division.more({"c": 2}, expected=1) == {"c": 2}
    assert division.held == {"c": 6}


LIMIT = st.integers(0, 1000)
FLOW = st.builds(
    Flow, weight=st.integers(1, 5), own=LIMIT, servers=st.lists(st.sampled_from("xyz"), max_size=2).map(tuple)
)


@given(
    st.dictionaries(st.sampled_from("abcdef"), FLOW, min_size=1), LIMIT, st.dictionaries(st.sampled_from("xyz"), LIMIT)
)
def test_all_limits_hold_and_none_is_left_unused(flows, total, servers):
    rates = divide(flows, total, servers)
    assert rates.keys() == flows.keys()
    limits = [(total, dict.fromkeys(flows, 1))]
    limits += [(limit, {name: flow.servers.count(at) for name, flow in flows.items()}) for at, limit in servers.items()]
    limits += [(flow.own, {name: 1}) for name, flow in flows.items()]
    full: set[str] = set()
    for limit, users in limits:
        limited = {name for name, times in users.items() if times}
        if not limit or not limited:
            continue
        assert all(rates[name] for name in limited)
        used = sum(times * rates[name] for name, times in users.items())
        slack = sum(users.values())  # whole bytes; and nobody gets less than one
        assert used <= limit + slack
        if used >= limit - slack:
            full |= limited
    assert {name for name, rate in rates.items() if rate} <= full


def test_who_has_a_lower_limit_leaves_the_rest_to_others():
    flows = {"slow": Flow(own=10), "one": Flow(), "two": Flow(weight=2)}
    assert divide(flows, 100, {}) == {"slow": 10, "one": 30, "two": 60}


def test_a_server_that_is_read_and_written_counts_twice():
    flows = {"within": Flow(servers=("nas", "nas")), "from": Flow(servers=("nas", "san"))}
    assert divide(flows, 0, {"nas": 90}) == {"within": 30, "from": 30}
    assert divide(flows, 0, {}) == {"within": 0, "from": 0}


@pytest.mark.parametrize(
    ("limits", "listening", "expected"),
    [
        (Limits(), False, (8, 4)),
        (Limits(jobs=20), False, (20, 20)),
        (Limits(workers=3), False, (3, 3)),
        (Limits(workers=6, jobs=2), False, (6, 2)),
        (Limits(workers=0), True, (0, 4)),
        (Limits(workers=0, jobs=9), True, (0, 9)),
    ],
)
def test_no_more_jobs_at_once_than_processes(limits, listening, expected):
    assert workers_and_jobs(limits, 100, 8, listening=listening) == expected


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("nfs://NAS1/export/a?nfsport=1", "nas1"),
        ("iscsi://user%secret@10.0.0.1:3260/iqn.a:b/1", "10.0.0.1"),
        ("iscsi://[fd00::1]:3260/iqn.a:b/1", "fd00::1"),
        ("/srv/a.raw", None),
        ("file:/srv/a.raw", None),
        ("null:", None),
    ],
)
def test_the_server_of_a_url(url, server):
    assert server_of(url) == server
