"""`mpconv checksum`: digests of what guests see."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mpconv.cli.options.command import (
    WithProgressKind,
    hole_map_option,
    image_options,
    is_json,
    retry_option,
    show,
    show_text,
    trust_of,
    trust_options,
)
from mpconv.cli.options.monitor import Part, reading, watch_of, watch_options
from mpconv.cli.options.types import Requests, Snapshot
from mpconv.cli.qemu.places import places
from mpconv.model.errors import Interrupted, MpconvError, UsageError
from mpconv.options.cache import CACHE_MODES

if TYPE_CHECKING:
    from mpconv.jobs.checksum import Checksum, Options
    from mpconv.model.place import Place
    from mpconv.ui.monitor.monitor import Monitor
    from mpconv.ui.terminal.progress import Display
    from mpconv.workers.launch.local import LocalWorkers


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
@hole_map_option
@watch_options
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
    no_hole_map: bool,
    metrics: str | None,
    web: str | None,
    output: str,
    image_opts: bool,
    force_share: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: tuple[str, ...],
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
    watch = watch_of({"metrics": metrics, "web": web})

    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415  (as in convert)

    local = click.get_current_context().with_resource(LocalWorkers.preloading(found, digesting=True))

    from mpconv.cli.output.copy import run  # noqa: PLC0415
    from mpconv.inspection.texts import json_text  # noqa: PLC0415
    from mpconv.jobs.checksum import Options  # noqa: PLC0415

    options = Options(
        requests=parallel,
        workers=workers,
        shared=force_share,
        snapshot=snapshot,
        trust=trust_of(allow_backing, allow_data_file),
        retry_for=retry_for,
        hole_map=not no_hole_map,
    )
    kind = (progress_kind or "text") if progress or progress_kind else "none"
    one_by_one = _OneByOne(found, options, local, kind, watch, tell=not as_json)
    run(one_by_one.all(), one_by_one.dump, verbose=False, watch=watch)
    if as_json:
        show_text(json_text(one_by_one.facts) + "\n")
    return one_by_one.code


class _OneByOne:
    """One image after the other, each with a display of its own, all of them watched as long as one of them is read.
    `facts`: of each that could be read. `tell`: their digests, as soon as they are known.
    """

    def __init__(
        self,
        images: list[Place],
        options: Options,
        local: LocalWorkers,
        kind: str,
        watch: Monitor | None,
        *,
        tell: bool,
    ) -> None:
        self._images = images
        self._options = options
        self._local = local
        self._kind = kind
        self._watch = watch
        self._tell = tell
        self._display: Display | None = None
        self.facts: list[object] = []
        self.code = 0

    def dump(self) -> None:
        """How far the one is that is being read."""
        if self._display is not None:
            self._display.dump()

    async def all(self) -> None:
        """What cannot be read is told, and passed over."""
        from mpconv import transports  # noqa: PLC0415  (workers are forked first)

        names = [transports.redacted(image.url) for image in self._images]
        parts = reading(self._watch, names)
        for image, name, part in zip(self._images, names, parts, strict=True):
            try:
                result = await self._read(image, part)
            except Interrupted:
                raise
            except MpconvError as error:
                print(f"mpconv: {error}", file=sys.stderr)
                self.code = error.exit_code
                continue
            self.facts.append({"filename": name, "virtual-size": result.size, "digest": result.digest})
            if self._tell:
                show([f"{result.digest}  {name}"])

    async def _read(self, image: Place, part: Part) -> Checksum:
        from mpconv.cli.output.copy import Report  # noqa: PLC0415
        from mpconv.jobs import checksum as job  # noqa: PLC0415
        from mpconv.jobs.context import JobContext  # noqa: PLC0415
        from mpconv.ui.terminal.display import make_display  # noqa: PLC0415

        self._display = make_display(self._kind, sys.stdout, sys.stderr)
        with Report(self._display, quiet=False, verbose=False, did="read") as report, part.read(report) as observer:
            result = await job.checksum(image, self._options, JobContext(self._local, observer))
            part.found(result.digest)
            return result
