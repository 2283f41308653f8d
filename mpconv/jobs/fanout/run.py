"""Many copies side by side, in one event loop: each begun in its turn, tried again if that may help, and told of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from mpconv import transports
from mpconv.coordination.signals import SignalScope, in_scope, on_signal
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy import convert, journaled
from mpconv.jobs.fanout.encounters import Encounters
from mpconv.jobs.fanout.journal_dir import JournalDirectory
from mpconv.jobs.fanout.observer import FanoutObserver, OutcomeObserver
from mpconv.jobs.fanout.pool import JobShare, Pool
from mpconv.jobs.fanout.schedule import Entry, Flow, Schedule
from mpconv.jobs.fanout.spec import Fanout, Limits, Outcome, Result, Spec
from mpconv.journal.records import State, Stored
from mpconv.model.errors import (
    Cancelled,
    Denied,
    Deserted,
    ImageError,
    Interrupted,
    InUse,
    MpconvError,
    NoSpace,
    NoSuchImage,
    Unreachable,
    UsageError,
    internal,
)
from mpconv.options.effort import Effort
from mpconv.protocol.keys import Listening
from mpconv.workers.launch.local import LocalWorkers

_WILL_NOT_PASS = (UsageError, ImageError, NoSuchImage, InUse, Denied, NoSpace, Interrupted)
"""Of whatever process: a worker's errors come with their classes."""


class Run:
    """One run of a plan: `workers` processes on this host, `at_once` jobs. `outcomes`: in the plan's order. `ledger`:
    where it is kept what is done, None: nowhere.
    """

    def __init__(
        self,
        plan: Fanout,
        workers: int,
        at_once: int,
        local: LocalWorkers,
        watcher: FanoutObserver,
        *,
        listening: Listening | None = None,
        ledger: JournalDirectory | None = None,
    ) -> None:
        self._specs = {spec.name: spec for spec in plan.jobs}
        self._local = local
        self._watcher = watcher
        self._listening = listening
        self._ledger = ledger
        self.outcomes = [outcome_of(spec, ledger.stored(spec.name) if ledger else None) for spec in plan.jobs]
        self._by_name = {outcome.name: outcome for outcome in self.outcomes}
        self._observers: dict[str, OutcomeObserver] = {}
        self._schedule = Schedule(_entries(plan.jobs, self._by_name), at_once)
        self._pool = self._made_pool(plan.limits, workers)
        self._audiences: set[SignalScope] = set()
        self._interrupted: Interrupted | None = None

    def _made_pool(self, limits: Limits, workers: int) -> Pool:
        return Pool(
            self._local,
            workers,
            lambda: self._schedule.expected,
            listening=self._listening,
            each=limits.workers or None,
            rate=limits.rate,
            servers=limits.servers,
            warn=self._watcher.warn,
            listens=lambda endpoint: self._watcher.listens(endpoint, self._give_up),
        )

    async def run(self) -> None:
        """Until all jobs are over. Interrupted, when none runs any more, if a signal came. UsageError before any begins
        when what one of them writes is another one's too, under whatever name.
        """
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        for spec in self._specs.values():
            outcome = self._by_name[spec.name]
            self._observers[spec.name] = OutcomeObserver(outcome, self._watcher.job(outcome))
        done = {outcome.name for outcome in self.outcomes if outcome.result is Result.WRITTEN}
        self._encounters = Encounters(list(self._specs.values()), done)
        wrong = await in_scope(SignalScope(), self._encounters.foreseen())
        if wrong:
            raise UsageError("; ".join(map(str, wrong)))
        running: set[asyncio.Task[None]] = set()
        with on_signal(self._interrupt):
            async with self._pool:
                try:
                    while not self._schedule.over:
                        while (entry := self._schedule.next(self._loop.time())) is not None:
                            task = self._loop.create_task(self._attempt(self._specs[entry.name]))
                            running.add(task)
                            task.add_done_callback(running.discard)
                        await self._until_something_changes()
                except asyncio.CancelledError:
                    self._stop(Cancelled())
                    for task in running:
                        task.cancel()
                    await asyncio.gather(*running, return_exceptions=True)
                    raise
        if self._interrupted is not None:
            raise self._interrupted

    async def _until_something_changes(self) -> None:
        wake_at = self._schedule.wake_at
        wake = None if wake_at is None else self._loop.call_at(wake_at, self._changed.set)
        await self._changed.wait()
        self._changed.clear()
        if wake is not None:
            wake.cancel()

    def _give_up(self, error: Deserted) -> None:
        if self._interrupted is None and self._pool.deserted:
            self._interrupt(error)

    def _interrupt(self, error: Interrupted) -> None:
        """The first time all that run end what they are writing; each knows what the second time means."""
        if self._interrupted is None:
            self._stop(error)
        for audience in list(self._audiences):
            audience.tell(error.anew())  # each adds to it how far it came

    def _stop(self, error: Interrupted) -> None:
        """No job begins any more."""
        self._interrupted = error
        for name in self._schedule.stop():
            outcome = self._by_name[name]
            outcome.result = Result.STOPPED if outcome.attempts or outcome.done else Result.LEFT
        self._changed.set()

    async def _attempt(self, spec: Spec) -> None:
        """One run of one job; whatever becomes of it, the others go on."""
        outcome = self._by_name[spec.name]
        outcome.attempts += 1
        outcome.result = Result.RUNNING
        self._watcher.began(outcome)
        began = self._loop.time()
        audience = SignalScope()
        self._audiences.add(audience)
        lot = self._pool.lot(spec.name, Flow(weight=spec.weight, own=spec.options.rate, servers=spec.servers))
        error: MpconvError | None = None
        try:
            await in_scope(audience, self._copy_alone(spec, lot))
        except MpconvError as raised:
            error = raised
        except asyncio.CancelledError:
            error = Cancelled()
            raise
        except Exception as raised:
            error = internal(raised, "a job")
        finally:
            self._audiences.discard(audience)
            outcome.seconds += self._loop.time() - began
            self._ended(spec, outcome, error)
            self._pool.end(lot)
            self._changed.set()

    async def _copy_alone(self, spec: Spec, lot: JobShare) -> None:
        """UsageError when what it writes turns out to be another job's too."""
        await self._meet(spec, done=False)
        await self._copy(spec, JobContext(lot, self._observers[spec.name]))
        await self._meet(spec, done=True)

    async def _meet(self, spec: Spec, *, done: bool) -> None:
        begun = [one for one in self._specs.values() if one is not spec and self._has_begun(one)]
        problem = await self._encounters.met(spec, begun, done=done)
        if problem is not None:
            raise UsageError(problem.text)

    def _has_begun(self, spec: Spec) -> bool:
        outcome = self._by_name[spec.name]
        return outcome.attempts > 0 or outcome.result is Result.WRITTEN

    async def _copy(self, spec: Spec, context: JobContext) -> None:
        options = replace(spec.options, listening=self._listening, refuse_empty=True)
        if self._ledger is None:
            again = self._observers[spec.name].begun
            await convert.convert(spec.sources, spec.target, options, context, again=again)
            return
        path = self._ledger.journal_of(spec.name)
        if self._ledger.stored(spec.name) is None:
            await journaled.convert(spec.sources, spec.target, options, context, path)
            return
        effort = Effort(listening=self._listening, allow_same_image=spec.options.allow_same_image or None)
        await journaled.resume(path, effort, context, self._ledger.passwords)

    def _ended(self, spec: Spec, outcome: Outcome, error: MpconvError | None) -> None:
        again = error is not None and self._interrupted is None and not isinstance(error, _WILL_NOT_PASS)
        if again and self._observers[spec.name].begun and not self._can_be_begun_anew(spec):
            again = False
            assert error is not None
            error.why += "; it is not tried again, since only with --journal that would be safe"
        away = isinstance(error, Unreachable)
        wait = self._schedule.ended(spec.name, self._loop.time(), again=again, away=away)
        if wait is not None:
            outcome.result = Result.WAITING
            self._watcher.again(outcome, str(error), wait)
            return
        if error is None:
            outcome.result = Result.WRITTEN
        else:
            outcome.result = Result.STOPPED if isinstance(error, Interrupted) else Result.FAILED
            outcome.why = str(error)
        self._watcher.ended(outcome)

    def _can_be_begun_anew(self, spec: Spec) -> bool:
        """Whether it does no harm when a write of the last attempt lands yet: a server that stood still may have some
        in its socket. In a raw image it puts the same bytes at the same place. In a qcow2 image another attempt would
        have put others there, unless it begins behind all places that were given out, which the journal knows.
        """
        raw = spec.options.target_format == "raw" and not spec.options.probe_target
        return self._ledger is not None or raw or transports.is_local(spec.target.url)


def _entries(specs: Sequence[Spec], outcomes: dict[str, Outcome]) -> list[Entry]:
    return [
        Entry(
            name=spec.name,
            number=number,
            patience=spec.options.retry_for,
            priority=spec.priority,
            retries=spec.retries,
            delay=max(spec.retry_delay, 0 if transports.is_local(spec.target.url) else convert.SETTLE_SECONDS),
        )
        for number, spec in enumerate(specs)
        if outcomes[spec.name].result is not Result.WRITTEN
    ]


def outcome_of(spec: Spec, stored: Stored | None) -> Outcome:
    """How far the job is, by its journal."""
    outcome = Outcome(name=spec.name, target=transports.redacted(spec.target.url))
    if stored is None:
        return outcome
    outcome.done, outcome.size, outcome.zeros = stored.bytes_done, stored.begun.size, stored.zeros
    if stored.state is State.FINISHED:
        outcome.result = Result.WRITTEN
        told = {one.kind: one.text for one in stored.happened}
        outcome.digest = told.get("digest")
        if "verified" in told:
            outcome.verified = int(told["verified"].partition(" ")[0])
    return outcome
