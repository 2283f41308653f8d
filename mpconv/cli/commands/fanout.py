"""`mpconv fanout`: many copies by one plan, over one pool of workers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mpconv.cli.options.cluster import placement_of
from mpconv.cli.options.command import WithProgressKind, is_json
from mpconv.cli.options.copy import trust_journal_option
from mpconv.cli.options.keys import listen_options, listening_of
from mpconv.cli.options.monitor import watch_of, watch_options
from mpconv.journal import ownership
from mpconv.model.errors import Interrupted, UsageError, one_line

if TYPE_CHECKING:
    from mpconv.jobs.fanout.observer import FanoutObserver
    from mpconv.jobs.fanout.spec import Fanout
    from mpconv.protocol.keys import Listening

_SOME, _NONE = 2, 1


@click.command(cls=WithProgressKind)
@click.option("--check", is_flag=True, help="Only look whether the plan can be carried out; nothing is written.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Jobs at once, in place of the plan's limit.")
@click.option(
    "--workers", type=click.IntRange(0, 256), help="Worker processes of a host, in place of the plan's limit."
)
@listen_options
@click.option("--journal", metavar="DIR", help="Keep in DIR what is done and durable: mpconv resume DIR goes on.")
@trust_journal_option
@watch_options
@click.option("-p", "--progress", is_flag=True, help="Show how far each job is; --progress=json: as JSON lines.")
@click.option("--progress-kind", hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="As convert's.")
@click.option("--output", default="human", metavar="human|json", help="What became of each job, for programs.")
@click.option("--json", "as_json", is_flag=True, help="The same as --output json.")
@click.argument("names", nargs=-1, metavar="PLAN")
def fanout(names: tuple[str, ...], **options: Any) -> int:
    """Run the jobs of PLAN, a TOML file, each of which copies as mpconv convert does.

    The plan is checked as a whole before anything is written. A job that fails does not stop the others. The exit code
    is 0 when all targets are written, 2 when some are, and 1 when none is.
    """
    options["as_json"] |= is_json(options["output"])
    if len(names) != 1:
        raise UsageError("Expecting one plan: mpconv fanout PLAN.toml")
    listening = listening_of(options)
    from mpconv.cli.plan import resolved, text_of  # noqa: PLC0415 - --help does without

    limits = {"jobs": options["jobs"], "workers": options["workers"]}
    plan, problems = resolved(text_of(names[0]), options["journal"], listening, **limits)
    if problems:
        for problem in problems:
            print(f"mpconv: {one_line(f'{names[0]}: {problem}')}", file=sys.stderr)
        return _NONE
    if options["journal"] is not None and not options["trust_journal"]:
        ownership.check_directory(options["journal"])
    if options["check"]:
        from mpconv.cli.plan_check import check  # noqa: PLC0415  (few need it)

        return check(plan, names[0], quiet=options["quiet"])
    return run_plan(plan, None, options, listening)


def run_plan(plan: Fanout, resumed: str | None, options: dict[str, Any], listening: Listening | None) -> int:
    """Carry out a plan that was checked, or go on with one, whose journal is `resumed`: the exit code."""
    from mpconv.jobs.fanout.setup import ledger_of, modules_of  # noqa: PLC0415 - --help does without
    from mpconv.jobs.fanout.spec import workers_and_jobs  # noqa: PLC0415
    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415

    watch = watch_of(options)
    cores = len(os.sched_getaffinity(0))
    workers, jobs = workers_and_jobs(plan.limits, len(plan.jobs), cores, listening=listening is not None)
    local = click.get_current_context().with_resource(LocalWorkers(modules_of(plan)))

    from mpconv.cli.output.copy import run  # noqa: PLC0415
    from mpconv.cli.output.fanout import FanoutReport, display_for  # noqa: PLC0415  (after the fork, side by side)
    from mpconv.jobs.fanout.run import Run  # noqa: PLC0415

    ledger = click.get_current_context().with_resource(ledger_of(plan, options.get("journal"), resumed))
    display = display_for(options)
    placement = placement_of(options, listening)
    report = FanoutReport(display, quiet=options["quiet"], verbose=options["verbose"], placement=placement)
    watcher: FanoutObserver = report
    if watch is not None:
        from mpconv.ui.monitor.fanout import MonitoredFanout  # noqa: PLC0415  (few watch)

        watcher = MonitoredFanout(watch, report, plan.jobs)
    work = Run(plan, workers, jobs, local, watcher, listening=listening, ledger=ledger)
    ended: Interrupted | None = None
    try:
        with report:
            run(work.run(), display.dump, verbose=options["verbose"], placement=placement, watch=watch)
    except Interrupted as error:
        ended = error
    left = report.tell(work.outcomes, as_json=options["as_json"], journal=ledger.path if ledger is not None else None)
    if ended is not None:
        raise ended
    return 0 if not left else _NONE if left == len(work.outcomes) else _SOME
