"""`mpconv measure`: qemu-img measure's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mpconv.cli.image_command import ImageCommand, image_options, is_json, show, trust_of, trust_options
from mpconv.cli.params import Size
from mpconv.errors import UsageError

if TYPE_CHECKING:
    from mpconv.formats.image import Image

_SIZES = frozenset(("size", "extent_size_hint"))
_TARGET_OPTIONS = _SIZES | {"nocow", "preallocation", "id"}


@click.command(cls=ImageCommand)
@click.option("-O", "target_format", default="raw", metavar="FMT", help="The format to measure for.")
@click.option("-o", "target_options", multiple=True, metavar="KEY=VALUE,...", help="As convert's.")
@click.option("-l", "snapshot", metavar="SNAPSHOT", help="Of an internal snapshot, by id or name.")
@click.option("--size", type=Size("image size"), help="Of a disk of this many bytes, instead of FILE.")
@image_options
@trust_options
def measure(
    fmt: str | None,
    target_format: str,
    target_options: tuple[str, ...],
    snapshot: str | None,
    size: int | None,
    output: str,
    image_opts: bool,
    force_share: bool,
    allow_backing: tuple[str, ...],
    allow_data_file: bool,
    names: tuple[str, ...],
) -> None:
    """Tell how many bytes a copy of an image will take up."""
    import asyncio  # noqa: PLC0415 - --help does without

    from mpconv.cli.create_opts import parse_create_opts  # noqa: PLC0415
    from mpconv.cli.opening import QCOW2, RAW, opened, unknown_target_format  # noqa: PLC0415
    from mpconv.inspection import measure as inspection  # noqa: PLC0415
    from mpconv.inspection.texts import json_text  # noqa: PLC0415

    as_json = is_json(output)
    parse_create_opts(list(target_options), "")
    if len(names) > 1:
        raise UsageError("At most one filename argument is allowed.")
    if not names and (image_opts or fmt is not None or snapshot is not None):
        raise UsageError("--image-opts, -f, and -l require a filename argument.")
    if names and size is not None:
        raise UsageError("--size N cannot be used together with a filename.")
    if not names and size is None:
        raise UsageError("Either --size N or one filename must be specified.")

    async def measured(image: Image | None) -> inspection.Measure:
        if target_format == QCOW2:
            from mpconv.cli.qcow2_opts import measured_options  # noqa: PLC0415

            options, asked = measured_options(list(target_options))
            inspection.check_size(asked if size is None else size, options)
            if image is not None:
                return await inspection.of_image(image, options)
            return inspection.for_qcow2(size or 0, options)
        if target_format != RAW:
            raise UsageError(unknown_target_format(target_format))
        _check_target_options(target_options)
        return inspection.for_raw(size or 0 if image is None else image.size)

    async def ask() -> inspection.Measure:
        if not names:
            return await measured(None)
        trust = trust_of(allow_backing, allow_data_file)
        async with opened(names[0], fmt, image_opts, trust, snapshot=snapshot) as (_, image):
            return await measured(image)

    found = asyncio.run(ask())
    show([json_text(found.facts())] if as_json else found.lines())


def _check_target_options(lists: tuple[str, ...]) -> None:
    """Names and kinds of values; a raw image takes the same room whatever they say."""
    from mpconv.cli.create_opts import pairs, parse_bytes, parse_switch  # noqa: PLC0415

    for name, value, _ in pairs(",".join(lists)):
        if name not in _TARGET_OPTIONS:
            raise UsageError(f"Invalid parameter '{name}'")
        try:
            if name == "nocow":
                parse_switch(name, value)
            elif name in _SIZES:
                parse_bytes(name, value)
        except ValueError as error:
            raise UsageError(str(error)) from None
