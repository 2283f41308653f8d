"""`mpconv measure`: qemu-img measure's options."""

from __future__ import annotations

import asyncio

import click

from mpconv.cli.image_command import ImageCommand, image_options, is_json, show
from mpconv.cli.params import Size
from mpconv.errors import Fatal, UsageError

_TARGET_OPTIONS = frozenset(("size", "preallocation", "nocow", "extent_size_hint"))


@click.command(cls=ImageCommand)
@click.option("-O", "target_format", default="raw", metavar="FMT", help="The format to measure for.")
@click.option("-o", "target_options", multiple=True, metavar="KEY=VALUE,...", help="As convert's.")
@click.option("-l", "snapshot", metavar="SNAPSHOT", help="An internal snapshot, which raw images have not.")
@click.option("--size", type=Size("image size"), help="Of a disk of this many bytes, instead of FILE.")
@image_options
def measure(
    fmt: str | None,
    target_format: str,
    target_options: tuple[str, ...],
    snapshot: str | None,
    size: int | None,
    output: str,
    image_opts: bool,
    force_share: bool,
    names: tuple[str, ...],
) -> None:
    """Tell how many bytes a copy of an image will take up."""
    as_json = is_json(output)
    for text in target_options:
        if not text or text.startswith(",") or text.endswith(","):
            raise UsageError(f"Invalid option list: {text}")
    if len(names) > 1:
        raise UsageError("At most one filename argument is allowed.")
    if not names and (image_opts or fmt is not None or snapshot is not None):
        raise UsageError("--image-opts, -f, and -l require a filename argument.")
    if names and size is not None:
        raise UsageError("--size N cannot be used together with a filename.")

    from mpconv import inspection  # noqa: PLC0415 - --help does without
    from mpconv.cli.opening import RAW, opened, unknown_target_format  # noqa: PLC0415

    async def ask(name: str) -> int:
        async with opened(name, fmt, image_opts, force_share) as (_, image):
            return image.size

    if names:
        size = asyncio.run(ask(names[0]))
        if snapshot is not None:
            raise Fatal(
                f"Failed to load snapshot: Block format '{RAW}' used by device '' does not support temporarily "
                "loading internal snapshots"
            )
    elif size is None:
        raise UsageError("Either --size N or one filename must be specified.")
    if target_format != RAW:
        raise UsageError(unknown_target_format(target_format))
    _check_target_options(target_options)
    found = inspection.Measure(size)
    show([inspection.json_text(found.facts())] if as_json else found.lines())


def _check_target_options(lists: tuple[str, ...]) -> None:
    """Their names; a raw image takes the same room whatever they say."""
    for text in lists:
        for pair in text.replace(",,", "").split(","):
            key = pair.partition("=")[0]
            if key not in _TARGET_OPTIONS:
                raise UsageError(f"Invalid options for file format 'raw': Invalid parameter '{key}'")
