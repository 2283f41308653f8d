"""`mpconv resume`: a copy that kept a journal goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from mpconv.cli.cluster import placement_of
from mpconv.cli.image_command import WithProgressKind
from mpconv.cli.keys import listen_options, listening_of
from mpconv.cli.params import Duration, Requests, Size, last_of
from mpconv.cli.watching import watch_of, watch_options, watched
from mpconv.errors import MpconvError, UsageError

if TYPE_CHECKING:
    from mpconv.jobs.course import Course, Effort
    from mpconv.journal.records import Stored
    from mpconv.protocol.keys import Listening
    from mpconv.workers.launch.cluster import Placement
    from mpconv.workers.launch.local import LocalWorkers


@click.command(cls=WithProgressKind)
@click.option("--jobs", type=click.IntRange(1, 256), help="Of a fan-out: jobs at once.")
@click.option("-m", "--parallel", type=Requests(), multiple=True, callback=last_of, help="As convert's, from now on.")
@click.option("--workers", type=click.IntRange(0, 256), help="The same.")
@listen_options
@click.option(
    "-r", "--rate-limit", type=Size("rate limit"), multiple=True, callback=last_of, help="The same; 0: no limit."
)
@click.option("--retry-for", type=Duration(), metavar="TIME", help="The same.")
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
    if os.path.isdir(path):
        return _fanout(path, options, listening)
    placement = placement_of(options, listening)

    if options["jobs"] is not None or options["as_json"]:
        raise UsageError("--jobs and --json are for the journal of a fan-out")

    from mpconv.jobs import course as courses  # noqa: PLC0415 - --help does without
    from mpconv.journal.file import peek  # noqa: PLC0415
    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415

    stored, _ = peek(path)
    course = courses.decoded(courses.begun(stored, path), path)
    courses.check_passwords(course)
    chosen = course.options
    workers = LocalWorkers.preloading(
        [*course.sources, *(aim.place for aim in course.aims)],
        course.target,
        compressing=chosen.compress,
        digesting=chosen.digests,
    )
    local = click.get_current_context().with_resource(workers)

    from mpconv.cli.reporting import Report, display_of, run  # noqa: PLC0415
    from mpconv.jobs import journaled  # noqa: PLC0415

    display = display_of(options)
    effort = courses.Effort(
        requests=options["parallel"],
        workers=options["workers"],
        rate=options["rate_limit"],
        retry_for=options["retry_for"],
        listening=listening,
    )
    if course.aims:
        return _deployment(path, course, courses.begun(stored, path), effort, local, options, placement)
    watch = watch_of(options)
    with Report(display, quiet=options["quiet"], verbose=options["verbose"], placement=placement) as report:
        begun = courses.begun(stored, path).begun
        observer = watched(watch, report, begun.target, source=begun.source, target=begun.target)
        copy = journaled.resume(path, effort, local, observer, observer.warn)
        worked = run(copy, display.dump, verbose=options["verbose"], placement=placement, watch=watch)
    if not worked:
        _tell_finished(path, options)
    return 0


def _fanout(path: str, options: dict[str, Any], listening: Listening | None) -> int:
    """What is left of many jobs. Their own options stay; how much to do at a time may be another."""
    from mpconv.cli.fanout import run_plan, with_limits  # noqa: PLC0415  (few need these)
    from mpconv.fanout.ledger import read, stored  # noqa: PLC0415
    from mpconv.jobs.course import check_password_of  # noqa: PLC0415
    from mpconv.journal.records import State  # noqa: PLC0415

    for name, given in (("-m", options["parallel"]), ("--retry-for", options["retry_for"])):
        if given is not None:
            raise UsageError(f"{name} is each job's own in a fan-out: it cannot be chosen anew for all of them")
    limits = {"jobs": options["jobs"], "workers": options["workers"], "rate": options["rate_limit"]}
    plan = with_limits(read(path).plan, **limits)
    left = [spec for spec in plan.jobs if (found := stored(path, spec.name)) is None or found.state != State.FINISHED]
    for spec in left:
        for place in spec.places:
            check_password_of(place)
    return run_plan(plan, path, options, listening)


def _tell_finished(path: str, options: dict[str, Any]) -> None:
    if not options["quiet"] and options["progress_kind"] != "json":
        print(f"The copy that the journal '{path}' tells of is finished.")


def _deployment(
    path: str,
    course: Course,
    stored: Stored,
    effort: Effort,
    local: LocalWorkers,
    options: dict[str, Any],
    placement: Placement | None,
) -> int:
    from mpconv.cli.deploy import told  # noqa: PLC0415
    from mpconv.cli.reporting import Report, display_of, run  # noqa: PLC0415
    from mpconv.jobs import redeploy  # noqa: PLC0415  (few need these)

    display = display_of(options)
    deployment = redeploy.as_it_was_left(course, stored)
    ended: MpconvError | None = None
    watch = watch_of(options)
    begun, targets = stored.begun, len(deployment.left)
    try:
        with Report(display, quiet=options["quiet"], verbose=options["verbose"], placement=placement) as report:
            observer = watched(watch, report, begun.source, source=begun.source, target=begun.target, targets=targets)
            copy = redeploy.resume(deployment, path, effort, local, observer)
            worked = run(copy, display.dump, verbose=options["verbose"], placement=placement, watch=watch)
        if not worked:
            _tell_finished(path, options)
    except MpconvError as error:
        ended = error
    return told(deployment, ended, as_json=False, among_lines=options["progress_kind"] == "json")
