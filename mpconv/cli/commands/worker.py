"""`mpconv worker`: this host's workers for a coordinator on another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

import click

from mpconv.cli.options.command import ImageCommand
from mpconv.cli.options.keys import key_file_option, keys_of
from mpconv.cli.options.types import Duration
from mpconv.model.errors import UsageError, one_line
from mpconv.protocol.keys import check_endpoint

_MOST_WORKERS = 8
_WAIT = 300.0


class WorkerCommand(ImageCommand):
    """`--shared-files` takes no value but with a `=`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"{arg}=/" if arg == "--shared-files" else arg for arg in args])


@click.command(cls=WorkerCommand)
@click.option("--connect", metavar="tcp://HOST:PORT", help="Where mpconv convert --listen is, or will be.")
@key_file_option
@click.option("--workers", type=click.IntRange(1, 256), help="Processes (default: one for each core, at most 8).")
@click.option(
    "--wait", type=Duration(), default=_WAIT, metavar="TIME", help="How long a coordinator is looked for; default 5m."
)
@click.option("--stay", is_flag=True, help="After a job wait for the next one, for ever.")
@click.option(
    "--shared-files",
    multiple=True,
    metavar="[=DIR]",
    help="Open files of this host for the coordinator, those in DIR alone. May be given more than once.",
)
@click.option("--parent", type=int, metavar="PID", help="Leave when this process, which started it, ends.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
@click.argument("names", nargs=-1, metavar="")
def worker(names: tuple[str, ...], **options: Any) -> int:
    """Take part in the copy of a coordinator on another host, until it is over.

    On SIGTERM, SIGHUP or SIGINT what is being written ends first, and is flushed; the second time it ends at once.
    """
    if names:
        raise UsageError(f"unexpected argument '{names[0]}'")
    if options["connect"] is None:
        raise UsageError("Must specify --connect tcp://HOST:PORT")
    endpoint = check_endpoint(options["connect"])
    keys = keys_of(options)
    files = [os.path.realpath(directory) for directory in options["shared_files"]] or None
    if options["parent"] is not None:
        from mpconv.workers.launch import parent_death  # noqa: PLC0415  (few need it)

        if not parent_death.watched(options["parent"]):
            return 0

    from mpconv.workers.launch.local import LocalWorkers  # noqa: PLC0415 - --help does without

    preload = ["mpconv.workers.remote_worker", "mpconv.transports.nfs.store", "mpconv.transports.iscsi.store"]
    local = click.get_current_context().with_resource(LocalWorkers(preload))

    from mpconv.workers.launch.agent import Agent  # noqa: PLC0415

    def tell(text: str) -> None:
        if not options["quiet"]:
            with contextlib.suppress(OSError):  # whoever read it may be gone
                print(f"mpconv: {one_line(text)}", file=sys.stderr, flush=True)

    async def serve() -> None:
        count = options["workers"] or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
        wait = None if options["stay"] else options["wait"]
        await Agent(endpoint, keys, count, local, tell, wait=wait, stay=options["stay"], files=files).serve()

    asyncio.run(serve())
    return 0
