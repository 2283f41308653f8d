"""Many copies at once, by a plan, for programs: docs/fanout.md.

It is above `cli`: a plan that is a text has options of the command `convert` for keys, and they are judged as those.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mpconv.coordination.observer import Observer
from mpconv.coordination.signals import SignalScope, in_scope
from mpconv.jobs.fanout.observer import FanoutObserver
from mpconv.jobs.fanout.run import Run
from mpconv.jobs.fanout.setup import ledger_of, left_in, modules_of, with_limits
from mpconv.jobs.fanout.spec import Fanout, Outcome, Spec, workers_and_jobs
from mpconv.jobs.fanout.validation import of_limits, problems_of
from mpconv.journal import ownership
from mpconv.model.errors import UsageError
from mpconv.model.place import OnWarning
from mpconv.workers.launch.local import LocalWorkers

if TYPE_CHECKING:
    from mpconv.jobs.fanout.plan import Problem
    from mpconv.protocol.keys import Listening

OnProgress = Callable[[Outcome], None]


def read_plan(plan: str | os.PathLike[str]) -> Fanout:
    """What a plan asks for. `plan`: its text, in TOML, or the Path of a file. UsageError with all that is wrong."""
    from mpconv.cli.plan import resolved, text_of  # noqa: PLC0415  (who makes plans of objects does without)

    path = None if isinstance(plan, str) else os.fspath(plan)
    text = str(plan) if path is None else text_of("./-" if path == "-" else path)
    found, problems = resolved(text, None, None, jobs=None, workers=None)
    if problems:
        name = "the plan" if path is None else f"the plan '{path}'"
        hint = "; a file is given as a Path" if path is None and "\n" not in text.strip() else ""
        raise UsageError(f"{name} cannot be carried out: {_listed(problems)}{hint}")
    return found


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise UsageError(f"the plan cannot be carried out: {_listed(problems)}")


def _listed(problems: list[Problem]) -> str:
    return "; ".join(map(str, problems))


async def fan_out(
    plan: Fanout | str | os.PathLike[str],
    *,
    journal: str | None = None,
    trust_journal: bool = False,
    jobs: int | None = None,
    workers: int | None = None,
    rate: int | None = None,
    listening: Listening | None = None,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> list[Outcome]:
    """Run the jobs of a plan, which may be one that `read_plan` reads: an outcome for each, in the plan's order. A job
    that fails does not stop the others. UsageError, before anything is opened, with all that is wrong with the plan.
    `journal`: a directory that lets `resume_fan_out` go on after a crash. `jobs`, `workers`, `rate`: limits in place of
    the plan's. `listening`: where workers of other hosts may join. `on_progress` hears each time something becomes of a
    job, whose outcome it is.
    """
    if journal is not None and not trust_journal:
        ownership.check_directory(journal)
    wanted = plan if isinstance(plan, Fanout) else read_plan(plan)
    wanted = with_limits(wanted, jobs=jobs, workers=workers, rate=rate)
    _refuse(problems_of(wanted, journal, listening))
    wanted = replace(wanted, jobs=[_whole(spec) for spec in wanted.jobs])
    return await _run(wanted, journal, None, listening, _Teller(on_progress, on_warning))


async def resume_fan_out(
    journal: str,
    *,
    trust_journal: bool = False,
    jobs: int | None = None,
    workers: int | None = None,
    rate: int | None = None,
    listening: Listening | None = None,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> list[Outcome]:
    """Go on with the fan-out whose journal it is: what is left of its jobs, and the outcomes of all. iSCSI passwords:
    from LIBISCSI_CHAP_PASSWORD.
    """
    if not trust_journal:
        ownership.check_directory(journal)
    plan = left_in(journal, jobs=jobs, workers=workers, rate=rate)
    _refuse([*of_limits(plan.limits.jobs, plan.limits.workers, plan.limits.rate)])
    return await _run(plan, None, journal, listening, _Teller(on_progress, on_warning))


def _whole(spec: Spec) -> Spec:
    """With what follows from the rest."""
    options = spec.options.whole()
    target = replace(
        spec.target,
        format=spec.target.format or options.target_format,
        direct=spec.target.direct or options.cache.direct,
    )
    return replace(spec, options=options, target=target)


async def _run(
    plan: Fanout, begun: str | None, resumed: str | None, listening: Listening | None, teller: _Teller
) -> list[Outcome]:
    cores = len(os.sched_getaffinity(0))
    workers, at_once = workers_and_jobs(plan.limits, len(plan.jobs), cores, listening=listening is not None)
    with contextlib.ExitStack() as held:
        ledger = held.enter_context(ledger_of(plan, begun, resumed))
        local = held.enter_context(LocalWorkers(modules_of(plan), spawned=True))
        run = Run(plan, workers, at_once, local, teller, listening=listening, ledger=ledger)
        work = asyncio.ensure_future(in_scope(SignalScope(), run.run()))
        teller.stop = work.cancel
        try:
            await work
        except asyncio.CancelledError:
            if teller.failure is None:
                raise
        if teller.failure is not None:
            raise teller.failure
    return run.outcomes


class _Teller(FanoutObserver):
    """Passes on to callbacks what the jobs tell. What they raise is kept, and ends all of them."""

    def __init__(self, on_progress: OnProgress | None, on_warning: OnWarning | None) -> None:
        self._on_progress = on_progress
        self._on_warning = on_warning
        self.failure: Exception | None = None
        self.stop: Callable[[], object] = lambda: None

    def job(self, outcome: Outcome) -> Observer:
        return _JobTeller(outcome, self)

    def began(self, outcome: Outcome) -> None:
        self.progress(outcome)

    def again(self, outcome: Outcome, why: str, seconds: float) -> None:
        self.warn(f"{outcome.name}: {why}; it begins again in {seconds:.0f} s")
        self.progress(outcome)

    def ended(self, outcome: Outcome) -> None:
        self.progress(outcome)

    def progress(self, outcome: Outcome) -> None:
        """Something became of a job."""
        if self._on_progress is not None and self.failure is None:
            try:
                self._on_progress(outcome)
            except Exception as error:
                self._fail(error)

    def warn(self, text: str) -> None:
        if self._on_warning is not None and self.failure is None:
            try:
                self._on_warning(text)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.stop()


class _JobTeller(Observer):
    """One job's part of it; its outcome is kept up to date by who tells."""

    def __init__(self, outcome: Outcome, all_of_them: _Teller) -> None:
        self._outcome = outcome
        self._all = all_of_them

    def progress(self, done: int, total: int, zeros: int) -> None:
        self._all.progress(self._outcome)

    def warn(self, text: str) -> None:
        self._all.warn(f"{self._outcome.name}: {text}")
