"""`mpconv convert`: qemu-img convert's options."""

from __future__ import annotations

from typing import Any

import click

from mpconv.cli.options.cluster import placement_of
from mpconv.cli.options.command import WithProgressKind, hole_map_option, retry_option, trust_options
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
from mpconv.cli.options.types import Level, OptionList
from mpconv.cli.qemu.copy_options import options_of, places_of
from mpconv.cli.qemu.refusals import check_combination, help_text
from mpconv.model.errors import UsageError
from mpconv.options.cache import CACHE_MODES


@click.command(cls=WithProgressKind)
@click.option("-f", "--source-format", metavar="FMT", help="The sources' format, raw or qcow2; else it is probed.")
@click.option("-O", "--target-format", metavar="FMT", help="The target's format, raw or qcow2; default raw.")
@click.option("-n", "--no-create", is_flag=True, help="The target exists: write into it, do not make it.")
@click.option(
    "-o",
    "--target-format-options",
    type=OptionList(),
    metavar="K=V,...",
    multiple=True,
    help="How to make it; 'help' lists them.",
)
@oob_option
@parallel_option
@workers_option
@listen_options
@sparse_option
@click.option("--target-is-zero", is_flag=True, help="With -n: the target reads as zeros, so none are written.")
@target_cache_option
@click.option("-T", "--source-cache", metavar="MODE", default="writeback", help="The same for the sources.")
@rate_option("for the whole job")
@click.option("-C", "--copy-range-offloading", is_flag=True, help="Have data copied where it lies, where that can be.")
@salvage_option
@click.option("-U", "--force-share", is_flag=True, help="The sources may be in use: by a running guest, say.")
@same_image_option
@click.option("--image-opts", is_flag=True, help="SOURCEs are driver options: driver=raw,file.filename=X")
@click.option("--target-image-opts", is_flag=True, help="TARGET is driver options; needs -n.")
@retry_option
@progress_option
@progress_kind_option
@quiet_option
@verbose_option
@click.option("-c", "--compress", is_flag=True, help="Compress, on all cores (qcow2).")
@click.option(
    "--compression-level",
    type=Level(),
    help="With -c: 1, the default and the fastest, to 9 (zlib) or 22 (zstd).",
)
@click.option("-B", "--backing", metavar="FILE", help="The target's backing file (qcow2).")
@click.option("-F", "--backing-format", metavar="FMT", help="Its format.")
@snapshot_option
@digest_option
@verify_option("the target")
@hole_map_option
@trust_options
@journal_option
@trust_journal_option
@watch_options
@click.option("--bitmaps", is_flag=True, help="Copy dirty bitmaps: refused so far.")
@click.option("--skip-broken-bitmaps", is_flag=True, help="Leave out bitmaps that are inconsistent.")
@click.argument("names", nargs=-1, metavar="SOURCE... TARGET")
def convert(names: tuple[str, ...], **options: Any) -> int:
    """Copy one image, or several one after the other, to another.

    SOURCE and TARGET are paths, nfs://HOST/EXPORT/FILE, iscsi://[USER@]HOST[:PORT]/TARGET/LUN, or null:.
    """
    check_combination(options)
    *sources, target = names if len(names) > 1 else ("", "")
    text = help_text(options, target)
    if text is not None:
        print(text)
        return 0
    if len(names) < 2:
        raise UsageError("Must specify image file name")
    if options["source_cache"] not in CACHE_MODES:
        raise UsageError(f"Invalid source cache option: {options['source_cache']}")
    return _run(sources, target, options)


def _run(sources: list[str], target: str, options: dict[str, Any]) -> int:
    # Imported here: --help does without, and the nursery imports its part while we import ours.
    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415

    listening = listening_of(options)
    placement = placement_of(options, listening)
    watch = watch_of(options)
    from_places, to_place, made, unusable = places_of(sources, target, options)
    workers = LocalWorkers.preloading(
        from_places,
        to_place,
        compressing=options["compress"],
        digesting=options["digest"] or options["verify"] is not None,
    )
    local = click.get_current_context().with_resource(workers)

    from mpconv import transports  # noqa: PLC0415
    from mpconv.cli.output.copy import Report, display_of, run  # noqa: PLC0415
    from mpconv.jobs.context import JobContext  # noqa: PLC0415
    from mpconv.jobs.copy import start  # noqa: PLC0415

    display = display_of(options)
    report = Report(display, quiet=options["quiet"], verbose=options["verbose"], placement=placement)
    chosen = options_of(options, to_place, made, unusable, target, listening)
    source, into = (", ".join(transports.redacted(place.url) for place in some) for some in (from_places, [to_place]))
    observer = watched(watch, report, into, source=source, target=into)
    kept = {"journal": options["journal"], "trusted": options["trust_journal"]}
    copy = start.convert(from_places, to_place, chosen.whole(), JobContext(local, observer), **kept)
    with report:
        run(copy, display.dump, verbose=options["verbose"], images=1 + len(sources), placement=placement, watch=watch)
    return 0
