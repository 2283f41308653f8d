"""`mpconv map`: qemu-img map's options."""

from __future__ import annotations

import click

from mpconv.cli.options.command import (
    ImageCommand,
    image_options,
    is_json,
    one_name,
    show,
    trust_of,
    trust_options,
    warn,
)
from mpconv.cli.options.types import Size


@click.command("map", cls=ImageCommand)
@click.option("-s", "--start-offset", type=Size("start offset"), default=0, help="The first byte to look at.")
@click.option("-l", "--max-length", type=Size("max length"), help="Bytes to look at (default: to the end).")
@image_options
@trust_options
def map_(
    fmt: str | None,
    output: str,
    start_offset: int,
    max_length: int | None,
    image_opts: bool,
    force_share: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    """Tell where an image's data lies, and where holes are."""
    name = one_name(names)
    as_json = is_json(output)

    import asyncio  # noqa: PLC0415 - --help does without

    from mpconv.cli.qemu.places import places  # noqa: PLC0415
    from mpconv.inspection import queries  # noqa: PLC0415
    from mpconv.inspection.block_map import map_json, map_lines  # noqa: PLC0415

    [place] = places([name], fmt, image_opts, shared=force_share)
    trust = trust_of(allow_backing, allow_data_file)
    entries = asyncio.run(queries.map(place, start_offset, max_length, trust=trust, on_warning=warn))
    show(map_json(entries) if as_json else map_lines(entries))
