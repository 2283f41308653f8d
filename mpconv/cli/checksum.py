"""`mpconv checksum`: digests of what guests see."""

from __future__ import annotations

import sys

import click

from mpconv.cache import CACHE_MODES
from mpconv.cli.image_command import (
    WithProgressKind,
    image_options,
    is_json,
    retry_option,
    show,
    trust_of,
    trust_options,
)
from mpconv.cli.opening import places
from mpconv.cli.params import Requests, Snapshot
from mpconv.errors import Interrupted, MpconvError, UsageError


@click.command(cls=WithProgressKind)
@click.option(
    "-T", "--cache", metavar="MODE", default="writeback", help=f"{', '.join(CACHE_MODES)}; default writeback."
)
@click.option("-l", "--snapshot", type=Snapshot(), metavar="SNAP", help="Of an internal snapshot (qcow2).")
@click.option("-m", "--parallel", type=Requests(), help="Buffers in flight, over all workers.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Worker processes (default: by cores and size, at most 8)."
)
@click.option("-p", "--progress", is_flag=True, help="Show read bytes; --progress=json: as JSON lines.")
@click.option("--progress-kind", hidden=True)
@retry_option
@image_options
@trust_options
def checksum(
    fmt: str | None,
    cache: str,
    snapshot: str | None,
    parallel: int | None,
    workers: int | None,
    progress: bool,
    progress_kind: str | None,
    retry_for: float,
    output: str,
    image_opts: bool,
    force_share: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: bool,
    names: tuple[str, ...],
) -> int:
    """Print a digest of what a guest sees of each IMAGE: whatever the format, equal disks have equal digests.

    It finds errors, not forgeries. Of an image that cannot be read the error is told, and the exit code is 1.
    """
    as_json = is_json(output)
    if not names:
        raise UsageError("Expecting an image file name")
    if cache not in CACHE_MODES:
        raise UsageError(f"Invalid source cache option: {cache}")
    found = places(names, fmt, image_opts, CACHE_MODES[cache].direct)

    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415  (as in convert)

    local = click.get_current_context().with_resource(LocalWorkers.preloading(found, digesting=True))

    from mpconv import transports  # noqa: PLC0415
    from mpconv.api import copying  # noqa: PLC0415
    from mpconv.cli.reporting import Report, run  # noqa: PLC0415
    from mpconv.inspection.texts import json_text  # noqa: PLC0415
    from mpconv.jobs.checksum import Options  # noqa: PLC0415
    from mpconv.ui.progress import make_display  # noqa: PLC0415

    options = Options(
        requests=parallel,
        workers=workers,
        shared=force_share,
        snapshot=snapshot,
        trust=trust_of(allow_backing, allow_data_file),
        retry_for=retry_for,
    )
    kind = (progress_kind or "text") if progress or progress_kind else "none"
    facts: list[object] = []
    code = 0
    for place in found:
        name = transports.redacted(place.url)
        display = make_display(kind, sys.stdout, sys.stderr)
        try:
            with Report(display, quiet=False, verbose=False) as report:
                result = run(copying.checksum(place, options, local=local, observer=report), display, verbose=False)
        except Interrupted:
            raise
        except MpconvError as error:
            print(f"mpconv: {error}", file=sys.stderr)
            code = error.exit_code
            continue
        facts.append({"filename": name, "virtual-size": result.size, "digest": result.digest})
        if not as_json:
            show([f"{result.digest}  {name}"])
    if as_json:
        show([json_text(facts)])
    return code
