"""The state machine against a model of its workers and of the target, driven by Hypothesis.

The model keeps what each worker really wrote and flushed. It counts in units: every boundary lies on one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpconv.core import state as c
from mpconv.core.sequence import Order
from mpconv.model.digest import MODULUS, REGION, packed
from mpconv.model.errors import ProtocolError
from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import Ranges
from mpconv.model.units import KiB

picks = st.integers(0, 1 << 16)


def digest_of(unit: int) -> int:
    """Large, so that sums overflow, and of its own for each set of units."""
    return MODULUS - (1 << unit)


@dataclass(eq=False)
class Held:
    """A lease that the coordinator counts as the worker's own."""

    extent: Extent
    deadline: float
    token: bool


@dataclass(eq=False)
class Worker:
    """`may_write`: what it got a token for and has not reported done. `unflushed`: units it wrote since its flush.
    `digested`: units that it reported done since it was asked to flush.
    """

    name: str
    leases: dict[int, Held] = field(default_factory=dict)
    doubtful: dict[int, Extent] = field(default_factory=dict)
    may_write: dict[int, Extent] = field(default_factory=dict)
    unflushed: set[int] = field(default_factory=set)
    flush_deadline: float | None = None
    flush_begun: bool = False
    counted: list[tuple[int, int]] = field(default_factory=list)
    flushing: list[tuple[int, int]] = field(default_factory=list)
    answered: list[tuple[int, int]] = field(default_factory=list)
    digested: list[int] = field(default_factory=list)
    digests_flushing: list[int] = field(default_factory=list)


class CoordinatorMachine(RuleBasedStateMachine):
    """Workers that want, read, write, flush, fall silent and die in any order."""

    @initialize(
        unit=st.sampled_from([512, 64 * KiB]),
        units=st.integers(0, 60),
        buffer_units=st.integers(1, 6),
        buffers=st.integers(1, 3),
        order=st.sampled_from(Order),
        zero_initialised=st.booleans(),
        zeros_from=st.none() | st.integers(0, 70),
        leaves_unallocated=st.booleans(),
        durable=st.booleans(),
        workers=st.integers(1, 4),
        lease_seconds=st.sampled_from([0.5, 10.0, 30.0]),
        prompt=st.booleans(),
        checkpoints=st.booleans(),
        before=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 20)), max_size=3),
    )
    def start(
        self,
        unit,
        units,
        buffer_units,
        buffers,
        order,
        zero_initialised,
        zeros_from,
        leaves_unallocated,
        durable,
        workers,
        lease_seconds,
        prompt,
        checkpoints,
        before,
    ) -> None:
        self.prompt = prompt  # a flush begins as it is asked for, so that it covers no more than it must
        self.unit, self.units = unit, units
        self.order, self.durable = order, durable
        self.zero_initialised, self.leaves_unallocated = zero_initialised, leaves_unallocated
        self.zeros_from = units if zeros_from is None else zeros_from
        self.lease_seconds = lease_seconds
        self.before = {unit for start, count in before for unit in range(start, min(start + count, units))}
        done = Ranges()
        for number in self.before:
            done.add(number * unit, (number + 1) * unit)
        self.state = c.CoordinatorState(
            units * unit,
            order=order,
            zero_initialised=zero_initialised,
            zeros_from=None if zeros_from is None else zeros_from * unit,
            leaves_unallocated=leaves_unallocated,
            durable=durable,
            workers=workers,
            lease_size=buffers * buffer_units * unit,
            buffer_size=buffer_units * unit,
            lease_seconds=lease_seconds,
            checkpoint_seconds=lease_seconds / 4 if checkpoints else 0,
            done=done,
            zeros_done=len(self.before) * unit,
        )
        self.now = 1000.0
        self.kinds: list[Kind] = []
        self.alive: list[Worker] = []
        self.dead: list[Worker] = []
        self.stale: list[tuple[Worker, int]] = []
        self.wanting: list[str] = []
        self.leaving: set[str] = set()
        self.ever_written: set[int] = set(self.before)
        self.recorded: set[int] = set(self.before)
        self.passed: set[int] = set()
        self.given: set[int] = set()
        self.durable_units: set[int] = set(self.before)
        self.settled: list[tuple[int, int]] = []
        self.digests_settled: list[int] = []
        self.last_epoch = 0
        self.finished = self.stopping = False
        self.sound = True
        for _ in range(workers):
            self.joins()
        if not units and not self.finished:  # there is nothing to do, which the first event tells, whatever it is
            self.ticks()
            assert self.finished

    # --- the model

    def joins(self) -> Worker:
        worker = Worker(f"w{len(self.alive) + len(self.dead)}")
        self.alive.append(worker)
        return worker

    def named(self, name: str) -> Worker:
        [worker] = [worker for worker in self.alive if worker.name == name]
        return worker

    def within(self, extent: Extent) -> range:
        assert extent.start % self.unit == 0 == extent.length % self.unit
        return range(extent.start // self.unit, extent.end // self.unit)

    def skipped(self, unit: int) -> bool:
        """Whether nobody writes it: an earlier run did, or it need not be."""
        return unit in self.before or self.passed_over(unit)

    def passed_over(self, unit: int) -> bool:
        if unit >= len(self.kinds) or self.kinds[unit] is Kind.DATA:
            return False
        there = self.zero_initialised or unit >= self.zeros_from
        return there or (self.leaves_unallocated and self.kinds[unit] is Kind.UNALLOCATED)

    def send(self, event: c.Event) -> list[c.Action]:
        """The event goes in; what comes out is checked against the model and taken over by it."""
        self.sound = False
        answered = [
            pair
            for worker in self.alive
            if isinstance(event, c.Flushed) and worker.name == event.worker
            for pair in worker.answered
        ]
        actions = self.state.handle(event, self.now)
        for action in actions:
            match action:
                case c.Durable(extents, zeros):
                    self.made_durable(extents, zeros, answered)
                case c.Passed(extent):
                    self.passes(extent)
                case c.Grant(name, epoch, extent, token):
                    self.granted(self.named(name), epoch, extent, token)
                case c.GiveToken(name, epoch):
                    self.given_token(self.named(name), epoch)
                case c.AskFlush(name):
                    self.asked_to_flush(self.named(name))
                case c.LetGo(name):
                    self.let_go(self.named(name))
                case c.Finish():
                    self.check_finish()
                case c.Stopped():
                    self.check_stopped()
        self.sound = True
        return actions

    def passes(self, extent: Extent) -> None:
        units = set(self.within(extent))
        assert units.isdisjoint(self.passed), "told of once"
        assert all(self.passed_over(unit) and self.kinds[unit] is extent.kind for unit in units)
        assert units.isdisjoint(self.before)
        self.passed |= units

    def granted(self, worker: Worker, epoch: int, extent: Extent, token: bool) -> None:
        if self.wanting:
            assert self.wanting.pop(0) == worker.name, "the first who wanted is the first to get"
        else:
            self.check_unasked(worker, extent)
        assert worker.name not in self.leaving
        assert epoch > self.last_epoch, "an epoch is used once"
        self.last_epoch = epoch
        assert token is (self.order is Order.FREE)
        for other in self.alive:
            held = [lease.extent for lease in other.leases.values()]
            for taken in [*held, *other.doubtful.values(), *other.may_write.values()]:
                assert not extent.overlaps(taken), f"{extent} granted while {other.name} has {taken}"
        for unit in self.within(extent):
            assert self.kinds[unit] is extent.kind
            assert not self.skipped(unit)
        if extent.kind is Kind.DATA:
            assert extent.length <= max(self.state.lease_size, self.state.buffer_size)
        worker.leases[epoch] = Held(extent, self.now + self.lease_seconds, token)
        if token:
            worker.may_write[epoch] = extent

    def check_unasked(self, worker: Worker, extent: Extent) -> None:
        assert self.order is Order.ASCENDING, "nobody wants it"
        assert not any(other.may_write or other.doubtful for other in self.alive)
        waiting = {held.extent.start: other for other in self.alive for held in other.leases.values()}
        assert extent.start < min(waiting) and waiting[min(waiting)] is worker, "it goes to the lowest that waits"

    def let_go(self, worker: Worker) -> None:
        """It may end: nothing is lost with it."""
        assert worker.name in self.leaving
        assert not worker.leases and not worker.doubtful and not worker.may_write
        assert not worker.counted and worker.flush_deadline is None and not (self.durable and worker.digested)
        self.alive.remove(worker)
        self.dead.append(worker)
        self.joins()

    def given_token(self, worker: Worker, epoch: int) -> None:
        held = worker.leases[epoch]
        assert not held.token
        units = set(self.within(held.extent))
        if self.order is Order.ASCENDING:
            assert not any(other.may_write or other.doubtful for other in self.alive), "one token at a time"
        elif self.order is Order.FOLLOWING:
            below = set(range(min(units))) - self.given
            assert all(self.skipped(unit) for unit in below), "a gap below"
            # What came back may be joined with what was never given: the new part of the lease is its end.
            new = units - self.given
            assert not new or min(new) > max(self.given, default=-1), "what was never given is given ascending"
        self.given |= units
        held.token = True
        worker.may_write[epoch] = held.extent

    def asked_to_flush(self, worker: Worker) -> None:
        assert self.durable and worker.flush_deadline is None, "one flush at a time"
        worker.flush_deadline = self.now + self.lease_seconds
        worker.flush_begun = False
        worker.flushing, worker.counted = worker.counted, []
        worker.digests_flushing, worker.digested = worker.digested, []
        if self.prompt:
            self.begins_flush(worker)

    def made_durable(self, extents: tuple[Extent, ...], zeros: int, answered: list[tuple[int, int]]) -> None:
        units = [unit for extent in extents for unit in self.within(extent)]
        assert set(units) <= self.durable_units, "told of as durable and not flushed"
        assert (len(units) * self.unit, zeros) == (sum(x for x, _ in answered), sum(x for _, x in answered))
        assert self.recorded.isdisjoint(units)
        self.recorded.update(units)

    def check_stopped(self) -> None:
        assert self.stopping
        self.finished = True
        for worker in self.alive:
            assert not worker.leases and not worker.doubtful and not worker.may_write
            assert not self.durable or not (worker.counted or worker.flushing), "stopped before it was flushed"

    def check_finish(self) -> None:
        self.finished = True
        assert len(self.kinds) == self.units
        for worker in self.alive:
            assert not worker.leases and not worker.doubtful and not worker.may_write
        to_write = {unit for unit in range(self.units) if not self.skipped(unit)}
        assert to_write <= self.ever_written
        assert self.passed == set(range(self.units)) - to_write - self.before
        if self.durable:
            assert to_write <= self.durable_units, "a byte is not durable"
            assert self.recorded == to_write | self.before
        counted = [pair for worker in self.alive for pair in worker.counted] + self.settled
        skipped = (self.units - len(to_write)) * self.unit
        assert sum(length for length, _ in counted) + skipped == self.state.bytes_done == self.state.size
        assert sum(zeros for _, zeros in counted) + skipped == self.state.bytes_zero

    def write(self, worker: Worker, units: range) -> None:
        """Units that the worker may write reach the target's cache."""
        if self.order is Order.ASCENDING and units:
            below = set(range(units.start))
            assert all(unit in self.ever_written or self.skipped(unit) for unit in below), "written out of order"
        self.ever_written.update(units)
        worker.unflushed.update(units)

    def leases(self, *, token: bool) -> list[tuple[Worker, int]]:
        return [
            (worker, epoch) for worker in self.alive for epoch, held in worker.leases.items() if held.token is token
        ]

    def writes_and_reports(self, worker: Worker, epoch: int, zeros: int) -> None:
        held = worker.leases.pop(epoch)
        del worker.may_write[epoch]
        self.write(worker, self.within(held.extent))
        worker.counted.append((held.extent.length, zeros))
        (worker.digested if self.durable else self.digests_settled).extend(self.within(held.extent))
        if not self.durable:
            self.settled.append(worker.counted.pop())
        self.stale.append((worker, epoch))
        self.send(c.LeaseDone(worker.name, epoch, zeros, self.digests(held.extent)))

    def digests(self, extent: Extent) -> bytes:
        """Of which units it is made of."""
        sums: dict[int, int] = {}
        for unit in self.within(extent):
            region = unit * self.unit // REGION
            sums[region] = sums.get(region, 0) + digest_of(unit)
        return packed(extent.start, extent.length, sums)

    def begins_flush(self, worker: Worker) -> None:
        worker.flush_begun = True
        self.durable_units |= worker.unflushed
        worker.unflushed.clear()

    def answers_flush(self, worker: Worker) -> None:
        worker.flush_deadline = None
        self.settled += worker.flushing
        self.digests_settled += worker.digests_flushing
        worker.digests_flushing = []
        worker.answered, worker.flushing = worker.flushing, []
        self.send(c.Flushed(worker.name))

    def lives(self, worker: Worker) -> None:
        for held in worker.leases.values():
            held.deadline = self.now + self.lease_seconds
        if worker.flush_deadline is not None:
            worker.flush_deadline = self.now + self.lease_seconds
        self.send(c.SignOfLife(worker.name))

    def dies(self, worker: Worker) -> None:
        """What it wrote and did not flush is lost, and a worker under a new name takes its place."""
        self.alive.remove(worker)
        self.dead.append(worker)
        self.stale += [(worker, epoch) for epoch in [*worker.leases, *worker.doubtful]]
        self.wanting = [name for name in self.wanting if name != worker.name]
        self.joins()
        self.send(c.WorkerDead(worker.name))

    def restarts(self, worker: Worker) -> None:
        """It has closed its connections, so that nothing it sent there is under way; what it did not flush is lost."""
        self.stale += [(worker, epoch) for epoch in [*worker.leases, *worker.doubtful]]
        self.wanting = [name for name in self.wanting if name != worker.name]
        for held in (worker.leases, worker.doubtful, worker.may_write):
            held.clear()
        worker.unflushed.clear()
        worker.counted, worker.flushing = [], []
        worker.digested, worker.digests_flushing = [], []
        worker.flush_deadline = None
        self.send(c.Restarted(worker.name))

    def feeds(self, runs: list[tuple[int, Kind]]) -> None:
        extents = []
        for length, kind in runs:
            at = len(self.kinds)
            units = min(length, self.units - at)
            if units:
                extents.append(Extent(at * self.unit, units * self.unit, kind))
                self.kinds += [kind] * units
        if extents:
            self.send(c.StatusFound(tuple(extents)))

    def ticks(self) -> None:
        expected: dict[str, bool] = {}
        for worker in self.alive:
            if worker.flush_deadline is not None and worker.flush_deadline < self.now:
                expected[worker.name] = False
                worker.flush_deadline = math.inf
            for epoch, held in list(worker.leases.items()):
                if held.deadline < self.now:
                    expected[worker.name] = expected.get(worker.name, False) or held.token
                    del worker.leases[epoch]
                    if held.token:
                        worker.doubtful[epoch] = held.extent
                    else:
                        self.stale.append((worker, epoch))
        actions = self.send(c.Tick())
        assert {x.worker: x.in_doubt for x in actions if isinstance(x, c.LostContact)} == expected

    # --- what may happen

    @rule(runs=st.lists(st.tuples(st.integers(1, 20), st.sampled_from(Kind)), min_size=1, max_size=5))
    def block_status_is_found(self, runs):
        self.feeds(runs)

    @rule(pick=picks, leases=st.integers(1, 3))
    def a_worker_wants_leases(self, pick, leases):
        worker = self.alive[pick % len(self.alive)]
        for _ in range(leases):
            if not self.finished and worker.name not in self.leaving:
                self.wanting.append(worker.name)
            self.send(c.LeaseWanted(worker.name))

    @rule(more=st.integers(-3, 3))
    def more_workers_are_expected_or_fewer(self, more):
        self.send(c.WorkersExpected(more))

    @precondition(lambda self: self.leases(token=False))
    @rule(pick=picks, again=st.booleans())
    def a_worker_asks_for_its_token(self, pick, again):
        found = self.leases(token=False)
        worker, epoch = found[pick % len(found)]
        actions = self.send(c.TokenWanted(worker.name, epoch))
        if self.order is Order.ASKED:
            assert actions == [c.GiveToken(worker.name, epoch)], "whoever asks writes at once"
        if again:
            assert self.send(c.TokenWanted(worker.name, epoch)) == []

    @precondition(lambda self: any(worker.may_write for worker in self.alive))
    @rule(pick=picks, part=st.floats(0, 1))
    def a_worker_writes_a_part_maybe_late(self, pick, part):
        found = [(worker, extent) for worker in self.alive for extent in worker.may_write.values()]
        worker, extent = found[pick % len(found)]
        units = self.within(extent)
        self.write(worker, units[: int(len(units) * part)])

    @precondition(lambda self: self.leases(token=True))
    @rule(pick=picks, zero_part=st.floats(0, 1))
    def a_worker_reports_done(self, pick, zero_part):
        found = self.leases(token=True)
        worker, epoch = found[pick % len(found)]
        self.writes_and_reports(worker, epoch, int(worker.leases[epoch].extent.length * zero_part))

    @precondition(lambda self: any(worker.doubtful for worker in self.alive))
    @rule(pick=picks)
    def a_worker_reports_done_too_late(self, pick):
        found = [(worker, epoch) for worker in self.alive for epoch in worker.doubtful]
        worker, epoch = found[pick % len(found)]
        if epoch in worker.may_write:
            self.write(worker, self.within(worker.may_write.pop(epoch)))
        self.changes_nothing(c.LeaseDone(worker.name, epoch, 0))

    @precondition(lambda self: self.leases(token=False))
    @rule(pick=picks)
    def to_be_done_without_a_token_is_refused(self, pick):
        found = self.leases(token=False)
        worker, epoch = found[pick % len(found)]
        self.is_refused(c.LeaseDone(worker.name, epoch, 0))

    @precondition(lambda self: self.leases(token=True))
    @rule(pick=picks, too_many=st.booleans())
    def zeros_beyond_the_lease_are_refused(self, pick, too_many):
        found = self.leases(token=True)
        worker, epoch = found[pick % len(found)]
        self.is_refused(c.LeaseDone(worker.name, epoch, worker.leases[epoch].extent.length + 1 if too_many else -1))

    @precondition(lambda self: self.leases(token=True))
    @rule(pick=picks, digests=st.integers(0, 4))
    def digests_of_another_number_of_regions_are_refused(self, pick, digests):
        found = self.leases(token=True)
        worker, epoch = found[pick % len(found)]
        extent = worker.leases[epoch].extent
        right = len(self.digests(extent))
        self.is_refused(c.LeaseDone(worker.name, epoch, 0, bytes(right + 1 + 7 * digests)))

    @precondition(lambda self: self.stale)
    @rule(pick=picks, done=st.booleans())
    def a_stale_epoch_is_named(self, pick, done):
        worker, epoch = self.stale[pick % len(self.stale)]
        self.changes_nothing(c.LeaseDone(worker.name, epoch, 0) if done else c.TokenWanted(worker.name, epoch))

    @rule(pick=picks, ahead=st.integers(1, 3), done=st.booleans())
    def somebody_else_s_epoch_is_named(self, pick, ahead, done):
        worker = self.alive[pick % len(self.alive)]
        foreign = [epoch for other in self.alive if other is not worker for epoch in other.leases]
        epoch = foreign[pick % len(foreign)] if foreign else self.last_epoch + ahead
        self.changes_nothing(c.LeaseDone(worker.name, epoch, 0) if done else c.TokenWanted(worker.name, epoch))

    @precondition(lambda self: self.dead)
    @rule(pick=picks)
    def the_dead_speak(self, pick):
        name = self.dead[pick % len(self.dead)].name
        for event in (c.LeaseWanted(name), c.SignOfLife(name), c.Flushed(name), c.WorkerDead(name)):
            assert self.send(event) == []

    @rule(pick=picks)
    def a_worker_gives_a_sign_of_life(self, pick):
        self.lives(self.alive[pick % len(self.alive)])

    @precondition(lambda self: any(worker.flush_deadline is not None for worker in self.alive))
    @rule(pick=picks, answer=st.booleans())
    def a_worker_flushes(self, pick, answer):
        found = [worker for worker in self.alive if worker.flush_deadline is not None]
        worker = found[pick % len(found)]
        if not worker.flush_begun:
            self.begins_flush(worker)
        if answer:
            self.answers_flush(worker)

    @rule(pick=picks)
    def a_flush_is_answered_that_nobody_asked_for(self, pick):
        worker = self.alive[pick % len(self.alive)]
        if worker.flush_deadline is None:
            self.changes_nothing(c.Flushed(worker.name))

    @precondition(lambda self: len(self.dead) < 8)
    @rule(pick=picks)
    def a_worker_dies(self, pick):
        self.dies(self.alive[pick % len(self.alive)])

    @rule(pick=picks)
    def a_worker_restarts(self, pick):
        self.restarts(self.alive[pick % len(self.alive)])

    @precondition(lambda self: len(self.dead) < 8 and not self.finished)
    @rule(pick=picks)
    def a_worker_is_leaving(self, pick):
        worker = self.alive[pick % len(self.alive)]
        self.leaving.add(worker.name)
        self.wanting = [name for name in self.wanting if name != worker.name]
        for epoch in [epoch for epoch, held in worker.leases.items() if not held.token]:
            del worker.leases[epoch]
            self.stale.append((worker, epoch))
        self.send(c.Leaving(worker.name))

    @precondition(lambda self: not self.stopping and len(self.kinds) > self.units // 2)
    @rule(chance=st.integers(0, 3))
    def the_job_is_stopped(self, chance):
        if chance or self.finished:
            return
        self.stopping = True
        for worker, epoch in self.leases(token=False):
            del worker.leases[epoch]
            self.stale.append((worker, epoch))
        self.send(c.Stop())

    @rule(share=st.sampled_from([0, 0.25, 0.5, 0.75, 1, 1.01, 20]), tick=st.booleans())
    def time_passes(self, share, tick):
        self.now += share * self.lease_seconds
        if tick:
            self.ticks()

    @rule()
    def everybody_works_for_a_while(self):
        self.everybody_works()

    @precondition(lambda self: not any(worker.doubtful for worker in self.alive))
    @rule()
    def everything_is_written_and_no_flush_answered(self):
        self.feeds([(self.units, Kind.DATA)])
        while not self.finished and not self.stopping and not self.state.cursor.exhausted:
            self.everybody_works(flush=False)

    # --- what always holds

    def changes_nothing(self, event: c.Event) -> None:
        before = self.snapshot()
        stale = self.state.stale
        assert self.send(event) == []
        assert self.snapshot() == before
        assert self.state.stale == stale + (not self.finished and not isinstance(event, c.Flushed))

    def is_refused(self, event: c.Event) -> None:
        before = self.snapshot()
        with pytest.raises(ProtocolError):
            self.state.handle(event, self.now)
        assert self.snapshot() == before

    def snapshot(self) -> object:
        state = self.state
        leases = [(x.epoch, x.extent, x.worker, x.deadline, x.state) for x in state.leases.live.values()]
        unflushed = [(batch.bytes, batch.zeros, list(batch.extents())) for batch in state.flushes.batches()]
        order = (state.sequence.watermark, state.sequence.committing)
        return leases, unflushed, order, state.cursor.extents(), state.bytes_done, state.bytes_zero, state.finished

    @invariant()
    def every_byte_is_in_one_place(self):
        self.state.check_invariants()
        assert self.state.finished is self.finished

    @invariant()
    def the_digests_are_of_what_is_done_and_not_lost(self):
        units = [unit for worker in self.alive for unit in [*worker.digested, *worker.digests_flushing]]
        expected: dict[int, int] = {}
        for unit in [*units, *self.digests_settled]:
            region = unit * self.unit // REGION
            expected[region] = (expected.get(region, 0) + digest_of(unit)) % MODULUS
        assert {region: self.state.digests[region] for region in self.state.digests.regions()} == expected
        assert self.state.digests.total == sum(expected.values()) % MODULUS

    @invariant()
    def the_coordinator_and_the_model_agree_on_the_leases(self):
        theirs = {epoch: (lease.worker, lease.extent) for epoch, lease in self.state.leases.live.items()}
        ours = {epoch: (w.name, held.extent) for w in self.alive for epoch, held in w.leases.items()}
        ours |= {epoch: (w.name, extent) for w in self.alive for epoch, extent in w.doubtful.items()}
        assert theirs == ours

    @invariant()
    def nobody_waits_while_there_is_work(self):
        assert self.finished or self.stopping or not self.wanting or self.state.cursor.peek() is None

    @invariant()
    def nobody_waits_for_what_nobody_has(self):
        """In order; otherwise nobody waits."""
        upcoming, held = self.state.cursor.peek(), [x.extent for w in self.alive for x in w.leases.values()]
        if self.order is Order.ASCENDING and upcoming is not None and held and not self.finished and not self.stopping:
            may_write = any(worker.may_write or worker.doubtful for worker in self.alive)
            assert may_write or min(extent.start for extent in held) < upcoming.start

    # --- and it always comes to an end

    def everybody_works(self, *, flush: bool = True) -> None:
        """One round of living, obedient workers: each asks, writes what it may, reports and maybe flushes."""
        for worker in list(self.alive):
            self.lives(worker)
        for worker in list(self.alive):
            if worker.name not in {*self.wanting, *self.leaving} and not self.finished:
                self.wanting.append(worker.name)
                self.send(c.LeaseWanted(worker.name))
        for worker, epoch in self.leases(token=False):
            self.send(c.TokenWanted(worker.name, epoch))
        for worker, epoch in self.leases(token=True):
            self.writes_and_reports(worker, epoch, 0)
        for worker in list(self.alive) if flush else []:
            if worker.flush_deadline is not None:
                if not worker.flush_begun:
                    self.begins_flush(worker)
                self.answers_flush(worker)

    def teardown(self):
        if not getattr(self, "sound", False):
            return
        for worker in [worker for worker in self.alive if worker.doubtful]:
            self.dies(worker)
        self.feeds([(self.units, Kind.DATA)])
        self.ticks_with_everybody_alive()
        rounds = 0
        while not self.finished:
            rounds += 1
            assert rounds <= self.units + 2, "no lease was written in a round: a deadlock"
            self.everybody_works()
            self.state.check_invariants()

    def ticks_with_everybody_alive(self) -> None:
        for worker in self.alive:
            self.lives(worker)
        self.ticks()


TestCoordinatorMachine = CoordinatorMachine.TestCase
TestCoordinatorMachine.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
