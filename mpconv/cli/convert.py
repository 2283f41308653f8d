"""`mpconv convert`: qemu-img convert's options."""

from __future__ import annotations

import asyncio
import sys

import click

from mpconv.errors import Interrupted
from mpconv.job import MAX_REQUESTS, MAX_SPARSE
from mpconv.ui.progress import ProgressLine
from mpconv.units import SECTOR, parse_size


class SparseSize(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`-S`: a multiple of a sector, at most 16 MiB; 0 for no zero detection."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = value if isinstance(value, int) else parse_size(str(value))
        except ValueError:
            size = -1
        if size < 0 or size % SECTOR or size > MAX_SPARSE:
            self.fail(
                f"Invalid buffer size for sparse output specified: '{value}'. Valid sizes are multiples of "
                f"{SECTOR} up to {MAX_SPARSE}. Select 0 to disable sparse detection (fully allocates output)."
            )
        return size


@click.command()
@click.option("-p", "--progress", is_flag=True, help="Show the percentage of completed bytes.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
@click.option("-n", "--no-create", is_flag=True, help="The target exists: write into it, do not make it.")
@click.option(
    "-m",
    "--parallel",
    type=click.IntRange(1, MAX_REQUESTS),
    help="Buffers in flight, over all workers (default: 4 a worker, at least 8).",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Worker processes (default: by cores and size, at most 8)."
)
@click.option("-W", "--oob-writes", is_flag=True, help="Write out of order: faster.")
@click.option("-S", "--sparse-size", type=SparseSize(), default="4k", help="Shortest zero run to look for; 0: none.")
@click.option(
    "-t",
    "--target-cache",
    type=click.Choice(["writeback", "unsafe"]),
    default="writeback",
    help="unsafe: do not flush the target at the end.",
)
@click.option("-f", "--source-format", type=click.Choice(["raw"]), default="raw", help="The source's format.")
@click.option("-O", "--target-format", type=click.Choice(["raw"]), default="raw", help="The target's format.")
@click.argument("source")
@click.argument("target")
def convert(
    progress: bool,
    quiet: bool,
    no_create: bool,
    parallel: int | None,
    workers: int | None,
    oob_writes: bool,
    sparse_size: int,
    target_cache: str,
    source_format: str,
    target_format: str,
    source: str,
    target: str,
) -> int:
    """Copy one image to another.

    SOURCE and TARGET are paths, nfs://HOST/EXPORT/FILE, iscsi://[USER@]HOST[:PORT]/TARGET/LUN, or null:.
    """
    # Imported here: --help does without, and the fork server imports its part while we import ours.
    from mpconv import transports  # noqa: PLC0415
    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415

    workers_here = LocalWorkers(sorted({transports.module_of(source), transports.module_of(target)}))

    from mpconv import convert as job  # noqa: PLC0415

    line = ProgressLine(sys.stdout) if progress and not quiet else None
    try:
        if line is not None:
            line.update(0, 1)
        asyncio.run(
            job.convert(
                source,
                target,
                job.Options(
                    in_order=not oob_writes,
                    sparse_size=sparse_size,
                    create=not no_create,
                    requests=parallel,
                    workers=workers,
                    durable=target_cache != "unsafe",
                ),
                workers_here,
                line.update if line is not None else lambda done, total: None,
                lambda text: print(f"mpconv: warning: {text}", file=sys.stderr),
            )
        )
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    finally:
        if line is not None:
            line.finish()
    return 0
