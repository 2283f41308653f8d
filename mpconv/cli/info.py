"""`mpconv info`: qemu-img info's options."""

from __future__ import annotations

import click

from mpconv.cli.image_command import ImageCommand, image_options, is_json, one_name, show, trust_of


@click.command(cls=ImageCommand)
@click.option("--backing-chain", is_flag=True, help="Every image of the chain; raw images have no backing file.")
@image_options
def info(
    fmt: str | None,
    output: str,
    image_opts: bool,
    force_share: bool,
    backing_chain: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: bool,
    names: tuple[str, ...],
) -> None:
    """Tell an image's format and size, and how much room it takes up."""
    name = one_name(names)
    as_json = is_json(output)

    import asyncio  # noqa: PLC0415 - --help does without

    from mpconv import inspection  # noqa: PLC0415
    from mpconv.cli.opening import opened  # noqa: PLC0415

    async def ask() -> inspection.Info:
        async with opened(name, fmt, image_opts, trust_of(allow_backing, allow_data_file)) as (_, image):
            return await inspection.info(image)

    found = asyncio.run(ask())
    if as_json:
        facts = found.facts()
        show([inspection.json_text([facts] if backing_chain else facts)])
    else:
        show(found.lines())
