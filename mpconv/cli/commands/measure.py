"""`mpconv measure`: qemu-img measure's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mpconv.cli.options.command import (
    ImageCommand,
    image_options,
    is_json,
    show,
    show_text,
    trust_of,
    trust_options,
    warn,
)
from mpconv.cli.options.types import Size
from mpconv.model.errors import UsageError

if TYPE_CHECKING:
    from mpconv.formats.qcow2.options import Qcow2Options

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
    allow_data_file: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    """Tell how many bytes a copy of an image will take up."""
    from mpconv.cli.qemu.create_opts import parse_create_opts  # noqa: PLC0415 - --help does without
    from mpconv.cli.qemu.places import places  # noqa: PLC0415
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

    image = places(list(names), fmt, image_opts, shared=force_share)[0] if names else size or 0
    options: Qcow2Options | None = None
    refusal: str | None = None
    try:
        options = _options(target_format, target_options, size)
    except UsageError as error:
        refusal = error.why

    import asyncio  # noqa: PLC0415

    from mpconv.inspection import queries  # noqa: PLC0415

    trust = trust_of(allow_backing, allow_data_file)
    found = asyncio.run(
        queries.measure(image, target_format, options, snapshot=snapshot, trust=trust, refusal=refusal, on_warning=warn)
    )
    if as_json:
        show_text(json_text(found.facts()) + "\n")
    else:
        show(found.lines())


def _options(target_format: str, lists: tuple[str, ...], size: int | None) -> Qcow2Options | None:
    """How a qcow2 image is made, None for a raw one. UsageError when there can be none, of `size` bytes."""
    from mpconv.cli.qemu.format_names import QCOW2, RAW, unknown_target_format  # noqa: PLC0415

    if target_format == QCOW2:
        from mpconv.cli.qemu.qcow2_opts import measured_options  # noqa: PLC0415
        from mpconv.inspection.measure import check_size  # noqa: PLC0415

        options, asked = measured_options(list(lists))
        check_size(asked if size is None else size, options)
        return options
    if target_format != RAW:
        raise UsageError(unknown_target_format(target_format))
    _check_target_options(lists)
    return None


def _check_target_options(lists: tuple[str, ...]) -> None:
    """Names and kinds of values; a raw image takes the same room whatever they say."""
    from mpconv.cli.qemu.create_opts import pairs, parse_bytes, parse_switch  # noqa: PLC0415

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
