"""`mpconv resume`: a copy that kept a journal goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from mpconv.cli.options.cluster import placement_of
from mpconv.cli.options.command import WithProgressKind, show
from mpconv.cli.options.copy import same_image_option, trust_journal_option
from mpconv.cli.options.keys import listen_options, listening_of
from mpconv.cli.options.monitor import watch_of, watch_options, watched
from mpconv.cli.options.types import Duration, Requests, Size, last_of
from mpconv.journal import ownership
from mpconv.model.errors import MpconvError, UsageError

if TYPE_CHECKING:
    from mpconv.jobs.copy.deploy import Deployment
    from mpconv.jobs.copy.manifest import Manifest
    from mpconv.journal.records import Stored
    from mpconv.protocol.keys import Listening


@click.command(cls=WithProgressKind)
@click.option("--jobs", type=click.IntRange(1, 256), help="Of a fan-out: jobs at once.")
@click.option("-m", "--parallel", type=Requests(), multiple=True, callback=last_of, help="As convert's, from now on.")
@click.option("--workers", type=click.IntRange(0, 256), help="The same.")
@listen_options
@click.option(
    "-r", "--rate-limit", type=Size("rate limit"), multiple=True, callback=last_of, help="The same; 0: no limit."
)
@click.option("--retry-for", type=Duration(), metavar="TIME", help="The same.")
@same_image_option
@trust_journal_option
@watch_options
@click.option("-p", "--progress", is_flag=True, help="Show completed bytes; --progress=json: as JSON lines.")
@click.option("--progress-kind", hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="As convert's.")
@click.option("--json", "as_json", is_flag=True, help="Of a fan-out: what became of each job, for programs.")
@click.argument("names", nargs=-1, metavar="FILE")
def resume(names: tuple[str, ...], **options: Any) -> int:
    """Go on with a copy whose journal is FILE, with the options it was begun with, or with what is left of a fan-out.

    Nothing is done when its source was changed or its target is another one. A password is taken from
    LIBISCSI_CHAP_PASSWORD.
    """
    if len(names) != 1:
        raise UsageError("Expecting one journal: mpconv resume FILE")
    [path] = names
    listening = listening_of(options)
    trusted = options["trust_journal"]
    if os.path.isdir(path):
        if not trusted:
            ownership.check_directory(path)
        return _fanout(path, options, listening)
    placement = placement_of(options, listening)

    if options["jobs"] is not None or options["as_json"]:
        raise UsageError("--jobs and --json are for the journal of a fan-out")

    if not trusted:
        ownership.check(path)

    from mpconv.jobs.copy import manifest as courses  # noqa: PLC0415 - --help does without
    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415

    course, stored = courses.left_in(path)
    chosen = course.options
    workers = LocalWorkers.preloading(
        course.opened, course.target, compressing=chosen.compress, digesting=chosen.digests
    )
    local = click.get_current_context().with_resource(workers)

    from mpconv.cli.output.copy import Report, display_of, run  # noqa: PLC0415
    from mpconv.jobs.context import JobContext  # noqa: PLC0415
    from mpconv.jobs.copy import start  # noqa: PLC0415
    from mpconv.options.effort import Effort  # noqa: PLC0415

    display = display_of(options)
    effort = Effort(
        requests=options["parallel"],
        workers=options["workers"],
        rate=options["rate_limit"],
        retry_for=options["retry_for"],
        listening=listening,
        allow_same_image=options["allow_same_image"] or None,
    )
    deployment = _left(course, stored) if course.aims else None
    watch = watch_of(options)
    begun = stored.begun
    name, targets = (begun.target, 1) if deployment is None else (begun.source, len(deployment.left))
    ended: MpconvError | None = None
    try:
        with Report(display, quiet=options["quiet"], verbose=options["verbose"], placement=placement) as report:
            observer = watched(watch, report, name, source=begun.source, target=begun.target, targets=targets)
            copy = start.resume(path, effort, JobContext(local, observer), deployment)
            worked = run(
                copy, display.dump, verbose=options["verbose"], images=1 + targets, placement=placement, watch=watch
            )
        if not worked and not options["quiet"] and options["progress_kind"] != "json":
            show([f"The copy that the journal '{path}' tells of is finished."])
    except MpconvError as error:
        if deployment is None:
            raise
        ended = error
    if deployment is None:
        return 0
    from mpconv.cli.commands.deploy import told  # noqa: PLC0415  (few need it)

    return told(deployment, ended, as_json=False, among_lines=options["progress_kind"] == "json")


def _left(course: Manifest, stored: Stored) -> Deployment:
    from mpconv.jobs.copy import redeploy  # noqa: PLC0415  (few need it)

    return redeploy.as_it_was_left(course, stored)


def _fanout(path: str, options: dict[str, Any], listening: Listening | None) -> int:
    """What is left of many jobs. Their own options stay; how much to do at a time may be another."""
    from mpconv.cli.commands.fanout import run_plan  # noqa: PLC0415  (few need these)
    from mpconv.jobs.fanout.setup import left_in  # noqa: PLC0415

    for name, given in (("-m", options["parallel"]), ("--retry-for", options["retry_for"])):
        if given is not None:
            raise UsageError(f"{name} is each job's own in a fan-out: it cannot be chosen anew for all of them")
    plan = left_in(path, jobs=options["jobs"], workers=options["workers"], rate=options["rate_limit"])
    if options["allow_same_image"]:
        jobs = [replace(spec, options=replace(spec.options, allow_same_image=True)) for spec in plan.jobs]
        plan = replace(plan, jobs=jobs)
    return run_plan(plan, path, options, listening)
