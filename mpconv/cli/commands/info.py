"""`mpconv info`: qemu-img info's options."""

from __future__ import annotations

import click

from mpconv.cli.options.command import (
    ImageCommand,
    image_options,
    is_json,
    one_name,
    show,
    show_text,
    trust_of,
    trust_options,
)


@click.command(cls=ImageCommand)
@click.option(
    "--backing-chain", is_flag=True, help="Of the image's backing files too, which --allow-backing must allow."
)
@image_options
@trust_options
def info(
    fmt: str | None,
    output: str,
    image_opts: bool,
    force_share: bool,
    backing_chain: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    """Tell an image's format and size, and how much room it takes up."""
    name = one_name(names)
    as_json = is_json(output)

    import asyncio  # noqa: PLC0415 - --help does without

    from mpconv.cli.qemu.places import places  # noqa: PLC0415
    from mpconv.inspection import queries  # noqa: PLC0415
    from mpconv.inspection.texts import json_text  # noqa: PLC0415

    [place] = places([name], fmt, image_opts, shared=force_share)
    if backing_chain:
        found = asyncio.run(queries.backing_chain(place, trust=trust_of(allow_backing, allow_data_file)))
    else:
        found = [asyncio.run(queries.info(place))]
    if as_json:
        facts = [one.facts() for one in found]
        show_text(json_text(facts if backing_chain else facts[0]) + "\n")
    else:
        show("\n\n".join("\n".join(one.lines()) for one in found).split("\n"))
