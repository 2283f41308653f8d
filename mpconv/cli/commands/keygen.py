"""`mpconv keygen`: keys for a coordinator and its workers."""

from __future__ import annotations

import click

from mpconv.cli.options.command import ImageCommand
from mpconv.cli.options.keys import new_keys, write_keys
from mpconv.model.errors import UsageError


@click.command(cls=ImageCommand)
@click.option("--for-workers", metavar="FILE", help="Also a file without the coordinator's secret, for worker hosts.")
@click.argument("names", nargs=-1, metavar="FILE")
def keygen(names: tuple[str, ...], for_workers: str | None) -> int:
    """Make FILE, with new keys for a coordinator and its workers. It must not exist yet; who can read it may take part
    in copies, and learns the passwords of the images.
    """
    if len(names) != 1:
        raise UsageError("Expecting one file name: mpconv keygen FILE")
    keys = new_keys()
    write_keys(names[0], keys)
    if for_workers is not None:
        write_keys(for_workers, keys.for_workers)
    return 0
