"""`mpconv compare`: qemu-img compare's options, texts and exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mpconv.cli.options.command import WithProgressKind, hole_map_option, retry_option, show, trust_of, trust_options
from mpconv.cli.options.monitor import watch_of, watch_options, watched
from mpconv.cli.options.types import Requests
from mpconv.cli.qemu.places import places
from mpconv.model.errors import Fatal, Interrupted, MpconvError, UsageError
from mpconv.options.cache import CACHE_MODES

if TYPE_CHECKING:
    from mpconv.jobs.compare import Verdict

_SAME, _DIFFERENT = 0, 1
_CANNOT_OPEN, _CANNOT_ASK, _CANNOT_READ = 2, 3, 4
"""qemu-img's exit codes; with 1 for a usage error, so that one may be taken for a difference: its man page says >1."""


@click.command(cls=WithProgressKind)
@click.option("-f", "--a-format", "first_format", metavar="FMT", help="The first image's format; else it is probed.")
@click.option("-F", "--b-format", "second_format", metavar="FMT", help="The second image's format.")
@click.option(
    "-T", "--cache", metavar="MODE", default="writeback", help=f"{', '.join(CACHE_MODES)}; default writeback."
)
@click.option("-s", "--strict", is_flag=True, help="Sizes and block status must be the same too.")
@click.option("-U", "--force-share", is_flag=True, help="The images may be in use: by a running guest, say.")
@click.option("-m", "--parallel", type=Requests(), help="Buffers in flight, over all workers.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Worker processes (default: by cores and size, at most 8)."
)
@click.option("--image-opts", is_flag=True, help="The images are driver options: driver=raw,file.filename=X")
@trust_options
@retry_option
@hole_map_option
@click.option("-p", "--progress", is_flag=True, help="Show compared bytes; --progress=json: as JSON lines.")
@click.option("--progress-kind", hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
@watch_options
@click.argument("names", nargs=-1, metavar="FILE1 FILE2")
def compare(
    first_format: str | None,
    second_format: str | None,
    cache: str,
    strict: bool,
    force_share: bool,
    parallel: int | None,
    workers: int | None,
    image_opts: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: tuple[str, ...],
    retry_for: float,
    no_hole_map: bool,
    progress: bool,
    progress_kind: str | None,
    quiet: bool,
    metrics: str | None,
    web: str | None,
    names: tuple[str, ...],
) -> int:
    """Compare two images. Exit code 0: they are equal; 1: they differ; more: an error.

    A shorter image may go on with zeros, unless -s is given.
    """
    if len(names) != 2:
        raise UsageError("Expecting two image file names")
    if cache not in CACHE_MODES:
        raise _with_code(UsageError(f"Invalid source cache option: {cache}"), _CANNOT_OPEN)
    direct = CACHE_MODES[cache].direct
    watch = watch_of({"metrics": metrics, "web": web, "quiet": quiet})
    try:
        [first] = places(names[:1], first_format, image_opts, direct)
        [second] = places(names[1:], second_format, image_opts, direct)
    except MpconvError as error:
        raise _with_code(error, _CANNOT_OPEN) from None

    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415  (as in convert)

    local = click.get_current_context().with_resource(LocalWorkers.preloading([first, second]))

    from mpconv import transports  # noqa: PLC0415
    from mpconv.cli.output.copy import Report, display_of, run  # noqa: PLC0415
    from mpconv.jobs import compare as job  # noqa: PLC0415
    from mpconv.jobs.context import JobContext  # noqa: PLC0415

    display = display_of({"progress": progress, "progress_kind": progress_kind, "quiet": quiet})
    options = job.Options(
        strict=strict,
        shared=force_share,
        requests=parallel,
        workers=workers,
        trust=trust_of(allow_backing, allow_data_file),
        retry_for=retry_for,
        hole_map=not no_hole_map,
    )
    report = Report(display, quiet=quiet, verbose=False, did="compared")
    one, other = (transports.redacted(place.url) for place in (first, second))
    observer = watched(watch, report, f"{one} and {other}", source=one, target=other, kind="compare")

    async def compared() -> tuple[list[str], int]:
        found = said(await job.compare((first, second), options, JobContext(local, observer)), strict=strict)
        observer.judged(" ".join(found[0]), differs=found[1] == _DIFFERENT)
        return found

    try:
        with report:
            lines, code = run(compared(), display.dump, verbose=False, watch=watch)
    except Interrupted:
        raise
    except MpconvError as error:
        codes = {"": _CANNOT_OPEN, "reading block status": _CANNOT_ASK}
        raise _with_code(error, codes.get(error.operation, _CANNOT_READ)) from None
    if not quiet:
        try:
            show(lines)
        except Fatal as error:
            raise _with_code(error, code or _CANNOT_OPEN) from None
    return code


def said(verdict: Verdict, *, strict: bool) -> tuple[list[str], int]:
    """qemu-img's lines and exit code."""
    if strict and verdict.sizes_differ:
        return ["Strict mode: Image size mismatch!"], _DIFFERENT
    lines = []
    if verdict.sizes_differ:
        lines.append("Warning: Image size mismatch!")
    if verdict.differs_at is not None:
        return [*lines, f"Content mismatch at offset {verdict.differs_at}!"], _DIFFERENT
    if verdict.status_differs_at is not None:
        return [f"Strict mode: Offset {verdict.status_differs_at} block status mismatch!"], _DIFFERENT
    return [*lines, "Images are identical."], _SAME


def _with_code(error: MpconvError, code: int) -> MpconvError:
    error.exit_code = code
    return error
