"""`mpconv deploy`: one image to many targets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from mpconv.cli.options.cluster import placement_of
from mpconv.cli.options.command import (
    WithProgressKind,
    hole_map_option,
    is_json,
    retry_option,
    show,
    show_text,
    trust_of,
    trust_options,
)
from mpconv.cli.options.copy import (
    digest_option,
    journal_option,
    oob_option,
    parallel_option,
    progress_kind_option,
    progress_option,
    quiet_option,
    rate_option,
    salvage_option,
    same_image_option,
    snapshot_option,
    sparse_option,
    target_cache_option,
    trust_journal_option,
    verbose_option,
    verify_option,
    workers_option,
)
from mpconv.cli.options.keys import listen_options, listening_of
from mpconv.cli.options.monitor import watch_of, watch_options, watched
from mpconv.cli.options.types import Duration
from mpconv.cli.qemu.format_names import RAW
from mpconv.cli.qemu.places import places
from mpconv.cli.qemu.refusals import check_protocol
from mpconv.model.errors import Fatal, MpconvError, UsageError
from mpconv.model.limits import DROP_SECONDS
from mpconv.model.names import readable_values
from mpconv.model.place import Place
from mpconv.options.cache import CACHE_MODES

if TYPE_CHECKING:
    from mpconv.jobs.copy.deploy import Deployment

_SOME = 2
"""The exit code when some targets are written and some are not."""
_NONE = 1


@click.command(cls=WithProgressKind)
@click.option("-f", "--source-format", metavar="FMT", help="The source's format, raw or qcow2; else it is probed.")
@click.option("-O", "--target-format", metavar="FMT", default=RAW, help="The targets' format: raw, and no other yet.")
@click.option("-n", "--no-create", is_flag=True, help="The targets exist: write into them, do not make them.")
@click.option("--targets", "listed", metavar="FILE", help="More targets, one a line; # begins a comment; -: stdin.")
@oob_option
@parallel_option
@workers_option
@listen_options
@sparse_option
@click.option("--target-is-zero", is_flag=True, help="With -n: all targets read as zeros, so none are written.")
@target_cache_option
@click.option("-T", "--source-cache", metavar="MODE", default="writeback", help="The same for the source.")
@rate_option("to each target")
@salvage_option
@click.option("-U", "--force-share", is_flag=True, help="The source may be in use: by a running guest, say.")
@same_image_option
@retry_option
@click.option(
    "--drop-after",
    type=Duration(),
    default=DROP_SECONDS,
    metavar="TIME",
    help="How long the others wait for a target that does not answer, before it is dropped; default 30s.",
)
@progress_option
@progress_kind_option
@quiet_option
@verbose_option
@snapshot_option
@digest_option
@verify_option("each target")
@hole_map_option
@trust_options
@click.option("--output", default="human", metavar="human|json", help="What became of each target, for programs.")
@click.option("--json", "as_json", is_flag=True, help="The same as --output json.")
@journal_option
@trust_journal_option
@watch_options
@click.argument("names", nargs=-1, metavar="SOURCE [TARGET...]")
def deploy(names: tuple[str, ...], **options: Any) -> int:
    """Copy one image to many targets: it is read once, and written to each.

    A target that fails is dropped and named, and does not stop the others. The exit code is 0 when all targets are
    written, 2 when some are, and 1 when none is.
    """
    as_json = is_json(options["output"]) or options["as_json"]
    _check(options)
    if not names:
        raise UsageError("Must specify image file name")
    source, *targets = names
    if options["listed"] is not None:
        targets += _listed(options["listed"])
    if not targets:
        raise UsageError("Must specify at least one target, behind the source or in a file: --targets FILE")
    direct = CACHE_MODES[options["source_cache"]].direct
    [from_place] = places([source], options["source_format"], image_opts=False, direct=direct)
    to_places = [_target(name, options) for name in targets]
    return _run(from_place, to_places, options, as_json=as_json)


def _check(options: dict[str, Any]) -> None:
    """What is refused before anything is opened."""
    if options["target_format"] != RAW:
        why = f"mpconv deploy writes raw targets only, not {options['target_format']}"
        raise UsageError(f"{why}: mpconv convert writes qcow2, one at a time")
    if options["journal"] is not None and options["target_cache"] == "unsafe":
        raise UsageError("--journal cannot be used with -t unsafe: nothing would ever be durable")
    if options["target_is_zero"] and not options["no_create"]:
        raise UsageError("--target-is-zero requires use of -n flag")
    for mode, what in (("source_cache", "source cache option"), ("target_cache", "cache option")):
        if options[mode] not in CACHE_MODES:
            raise UsageError(f"Invalid {what}: {options[mode]}: one of {', '.join(CACHE_MODES)}")


def _listed(name: str) -> list[str]:
    """The targets that a file names."""
    try:
        if name == "-":
            text = sys.stdin.read()
        else:
            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"the list of targets '{name}' cannot be read: {getattr(error, 'strerror', error)}") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _target(name: str, options: dict[str, Any]) -> Place:
    direct = CACHE_MODES[options["target_cache"]].direct
    check_protocol(name)
    return places([name], RAW, image_opts=False, direct=direct, writable=True)[0]


def _run(source: Place, targets: list[Place], options: dict[str, Any], *, as_json: bool) -> int:
    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415  (as in convert)

    listening = listening_of(options)
    placement = placement_of(options, listening)
    watch = watch_of(options)
    digesting = options["digest"] or options["verify"] is not None
    workers = LocalWorkers.preloading([source, *targets], digesting=digesting)
    local = click.get_current_context().with_resource(workers)

    from mpconv import transports  # noqa: PLC0415
    from mpconv.cli.output.copy import Report, display_of, run  # noqa: PLC0415
    from mpconv.jobs.context import JobContext  # noqa: PLC0415
    from mpconv.jobs.copy import start  # noqa: PLC0415
    from mpconv.jobs.copy.deploy import Deployment  # noqa: PLC0415
    from mpconv.jobs.copy.targets import Outcome  # noqa: PLC0415
    from mpconv.options.copy import Options  # noqa: PLC0415

    display = display_of(options)
    sparse_size = options["sparse_size"]
    chosen = Options(
        in_order=not options["oob_writes"],
        sparse_size=4096 if sparse_size is None else sparse_size,
        create=not options["no_create"],
        target_is_zero=options["target_is_zero"],
        requests=options["parallel"],
        workers=options["workers"],
        listening=listening,
        cache=CACHE_MODES[options["target_cache"]],
        rate=options["rate_limit"] or 0,
        shared=options["force_share"],
        salvage=options["salvage"],
        snapshot=options["snapshot"],
        trust=trust_of(options["allow_backing"], options["allow_data_file"]),
        retry_for=options["retry_for"],
        drop_after=options["drop_after"],
        digest=options["digest"],
        verify=None if options["verify"] is None else options["verify"].share,
        verify_source=options["verify"] is not None and options["verify"].source,
        hole_map=not options["no_hole_map"],
        allow_same_image=options["allow_same_image"],
    )
    deployment = Deployment(source, [Outcome(place) for place in targets])
    report = Report(display, quiet=options["quiet"], verbose=options["verbose"], placement=placement)
    name, into = transports.redacted(source.url), ", ".join(outcome.name for outcome in deployment.outcomes)
    observer = watched(watch, report, name, source=name, target=into, targets=len(targets))
    kept = {"journal": options["journal"], "trusted": options["trust_journal"]}
    copy = start.deploy(deployment, chosen, JobContext(local, observer), **kept)
    ended: MpconvError | None = None
    images = 1 + len(targets)
    try:
        with report:
            run(
                copy,
                display.dump,
                verbose=options["verbose"],
                images=images,
                placement=placement,
                watch=watch,
            )
    except MpconvError as error:
        ended = error
    return told(deployment, ended, as_json=as_json, among_lines=options["progress_kind"] == "json")


def told(deployment: Deployment, ended: MpconvError | None, *, as_json: bool, among_lines: bool) -> int:
    """Tell what became of a deployment that is over: the exit code. `ended`: by what, for all targets; it is raised."""
    if as_json or among_lines:
        _tell_programs(deployment, ended, as_json=as_json)
    elif ended is None and deployment.digest is not None:
        show(f"{deployment.digest}  {outcome.name}" for outcome in deployment.left)
    if ended is not None:
        raise ended
    written, wanted = len(deployment.left), len(deployment.outcomes)
    if written == wanted:
        return 0
    print(f"mpconv: {written} of {wanted} targets are written", file=sys.stderr)
    return _SOME if written else _NONE


def _tell_programs(deployment: Deployment, ended: MpconvError | None, *, as_json: bool) -> None:
    """One object: of several lines when asked for by --output, else one line among those of --progress=json."""
    import json  # noqa: PLC0415  (few need these)

    from mpconv import transports  # noqa: PLC0415
    from mpconv.inspection.texts import json_text  # noqa: PLC0415

    facts: dict[str, object] = {
        "source": transports.redacted(deployment.source.url),
        "size": deployment.size,
        "targets": [
            {
                "target": outcome.name,
                "outcome": "written" if (outcome.error or ended) is None else "failed",
                "why": None if (outcome.error or ended) is None else str(outcome.error or ended),
                "verified": outcome.verified,
            }
            for outcome in deployment.outcomes
        ],
    }
    if deployment.digest is not None:
        facts["digest"] = deployment.digest
    show_text((json_text(facts) if as_json else json.dumps(readable_values(facts))) + "\n")
