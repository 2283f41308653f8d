"""The record of a job, fed by a real state machine as the coordinator feeds it."""

from __future__ import annotations

import pytest

from mpconv.core import events
from mpconv.core.sequence import Order
from mpconv.core.state import CoordinatorState
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.protocol.job import Job
from mpconv.ui.monitor.record import Record
from mpconv.ui.monitor.timeline import Timeline

MiB = 1 << 20
SIZE = 8 * MiB


class Machine:
    """A state machine and a record beside it, in a time of their own."""

    def __init__(self, *, targets: int = 1) -> None:
        self.time = 100.0
        self.record = Record(
            "one", source="a", target="b", targets=targets, now=lambda: self.time, wall=lambda: 1e9 + self.time
        )
        self.state = self.begin(["b"] * targets)
        for name in ("w1", "w2"):
            self.record.hello(name, f"pid {name}")

    def begin(self, targets: list[str]) -> CoordinatorState:
        job = Job(
            id=1, sources=[Place(url="a")], targets=[Place(url=url) for url in targets], size=SIZE, in_order=False,
            sparse_size=4096, zero_initialised=True, requests=8, durable=True,
        )  # fmt: skip
        state = CoordinatorState(SIZE, order=Order.FREE, zero_initialised=True, lease_size=MiB, buffer_size=MiB)
        self.record.began(job, state)
        return state

    def event(self, event: events.Event) -> list[events.Action]:
        actions = self.state.handle(event, self.time)
        self.record.took(event, actions)
        self.record.progress(self.state.bytes_done, SIZE, self.state.bytes_zero)
        return actions

    def take(self, worker: str) -> events.Grant:
        [grant] = self.event(events.LeaseWanted(worker))
        assert isinstance(grant, events.Grant)
        return grant

    def done(self, grant: events.Grant, zeros: int = 0) -> None:
        self.event(events.LeaseDone(grant.worker, grant.epoch, zeros))
        self.record.wrote(grant.worker, grant.extent, zeros)

    def worker(self, name: str):
        return next(worker for worker in self.record.facts().workers if worker.name == f"pid {name}")


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.event(events.StatusFound((Extent(0, 4 * MiB, Kind.ZERO), Extent(4 * MiB, 4 * MiB))))
    return made


def test_what_is_read_written_and_zero_is_told_for_the_job_and_each_worker(machine):
    first, second = machine.take("w1"), machine.take("w2")
    machine.done(first)
    machine.done(second, zeros=MiB // 4)
    facts = machine.record.facts()
    assert (facts.size, facts.done, facts.done_zero) == (SIZE, 6 * MiB, 4 * MiB + MiB // 4)
    assert (facts.read, facts.written, facts.zero) == (2 * MiB, 2 * MiB - MiB // 4, 4 * MiB + MiB // 4)
    assert (machine.worker("w1").written, machine.worker("w1").zero) == (MiB, 0)
    assert (machine.worker("w2").read, machine.worker("w2").written) == (MiB, MiB - MiB // 4)
    assert facts.map is not None
    half = len(facts.map.kinds) // 2
    assert facts.map.kinds == "z" * half + "d" * half
    assert facts.map.marks == "s" * half + "w" * (half // 2) + "." * (half // 2)
    assert facts.durable == 4 * MiB


def test_leases_are_those_of_the_state_machine(machine):
    machine.take("w1")
    assert machine.record.facts().leases == machine.worker("w1").leases == 1
    assert machine.worker("w1").state == "at work" and machine.worker("w2").state == "waiting"
    assert "l" in machine.record.facts().map.marks
    machine.time += 40
    machine.event(events.Tick())
    facts = machine.record.facts()
    assert (facts.leases, facts.in_doubt, machine.worker("w1").in_doubt) == (1, 1, 1)
    assert "?" in facts.map.marks and "l" not in facts.map.marks
    assert any(one.kind == "silent" and "pid w1" in one.text for one in facts.events)


def test_what_a_lost_worker_wrote_is_written_no_more_and_counted_again(machine):
    machine.done(machine.take("w1"))
    machine.event(events.WorkerDead("w1"))
    facts = machine.record.facts()
    assert facts.deaths == 1 and machine.worker("w1").state == "lost"
    assert "w" not in facts.map.marks and facts.done == 4 * MiB
    assert facts.written == MiB, "what was done was done: counters never fall"
    for _ in range(4):
        machine.done(machine.take("w2"))
    machine.event(events.Flushed("w2"))
    facts = machine.record.facts()
    assert set(facts.map.marks) == {"s"} and facts.durable == SIZE and facts.written == 5 * MiB


def test_a_worker_that_begins_anew_is_counted(machine):
    machine.done(machine.take("w1"))
    machine.event(events.Restarted("w1"))
    machine.record.trouble("w1")
    facts = machine.record.facts()
    assert (facts.restarts, facts.troubles, machine.worker("w1").restarts, machine.worker("w1").troubles) == (
        1,
        1,
        1,
        1,
    )
    assert "w" not in facts.map.marks


def test_reading_back_shows_on_the_map_of_the_copy(machine):
    for _ in range(4):
        machine.done(machine.take("w1"))
    machine.event(events.Flushed("w1"))
    machine.record.phase("verify")
    machine.state = machine.begin([])
    machine.record.hello("w9", "pid w9")
    machine.event(events.StatusFound((Extent(0, SIZE),)))
    machine.done(machine.take("w9"))
    facts = machine.record.facts()
    assert facts.written == 4 * MiB and facts.read == 5 * MiB
    assert facts.map.marks.count("v") == facts.map.marks.count("s") / 7
    assert machine.worker("w1").state == "gone"
    machine.record.verified(SIZE, SIZE)
    assert set(machine.record.facts().map.marks) == {"v"}


@pytest.mark.parametrize(
    ("why", "stopped", "dropped", "state"),
    [(None, False, 0, "finished"), (None, False, 1, "finished"), (None, False, 2, "failed"),
     ("no space", False, 0, "failed"),
     ("interrupted", True, 0, "stopped")],
)  # fmt: skip
def test_how_it_ended_is_told_once(why, stopped, dropped, state):
    machine = Machine(targets=2)
    for number in range(dropped):
        machine.record.dropped(f"b{number}", "gone")
    machine.record.ended(why, stopped=stopped)
    machine.record.ended("something else")
    facts = machine.record.facts()
    assert facts.state == state and facts.dropped == dropped
    assert facts.why == (why or ("no target is left" if dropped == 2 else None))
    before = facts
    machine.time += 5
    assert machine.record.facts() == before, "nothing of it moves any more"


def test_names_of_workers_are_different():
    machine = Machine()
    machine.record.hello("x", "hall/1")
    machine.record.hello("y", "hall/1")
    assert {worker.name for worker in machine.record.facts().workers} >= {"hall/1", "hall/1 #2"}


def test_the_rate_is_that_of_late(machine):
    machine.record.tick()
    for _ in range(4):
        machine.time += 1
        machine.done(machine.take("w1"))
        machine.record.tick()
    facts = machine.record.facts()
    assert facts.rate == pytest.approx(MiB, rel=0.01) and machine.worker("w1").rate == pytest.approx(MiB, rel=0.01)
    assert [sample.written for sample in facts.timeline] == [index * MiB for index in range(5)]


def test_a_long_time_takes_no_more_room_than_a_short_one():
    line = Timeline()
    for second in range(1, 100_000):
        line.add(second, second, 2 * second, 0)
    assert len(line.samples) <= 400
    times = [sample.at for sample in line.samples]
    assert times == sorted(times) and times[0] == 0 and times[-1] == 99_999
    assert times[-1] - times[-2] == 1 and times[1] - times[0] > 100
    assert all(sample.written == 2 * sample.read == 2 * sample.at for sample in line.samples)


def test_a_job_that_waits_for_its_turn_grows_no_older_and_holds_nothing():
    machine = Machine()
    machine.record.waits()
    machine.time += 50
    facts = machine.record.facts()
    assert (facts.state, facts.elapsed, facts.leases) == ("waiting", 0.0, 0)
    machine.record.starts()
    machine.state = machine.begin(["b"])
    machine.record.hello("w3", "pid w3")
    machine.event(events.StatusFound((Extent(0, SIZE),)))
    machine.take("w3")
    machine.time += 5
    assert (machine.record.facts().state, machine.record.facts().elapsed, machine.record.facts().leases) == (
        "running",
        5.0,
        1,
    )
    machine.record.waits()
    facts = machine.record.facts()
    assert (facts.state, facts.elapsed, facts.leases, machine.worker("w3").state) == ("waiting", 5.0, 0, "gone")
