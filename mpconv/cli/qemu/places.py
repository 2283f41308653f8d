"""From names and format words on the command line to places."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mpconv.cli.qemu.format_names import OTHERS, READABLE
from mpconv.model.errors import UsageError
from mpconv.model.place import Place
from mpconv.transports.base import cannot_open


def places(
    names: Sequence[str],
    fmt: str | None,
    image_opts: bool,
    direct: bool = False,
    *,
    writable: bool = False,
    shared: bool = False,
) -> list[Place]:
    """Where the images lie. `fmt`: what was given for all of them, None for nothing. `writable`: they are targets.
    `shared`: programs may have them open.
    """
    if image_opts:
        if fmt is not None:
            raise UsageError("--image-opts and --format are mutually exclusive")

        from mpconv.cli.qemu.image_opts import parse_image_opts  # noqa: PLC0415 - few need it

        found = [parse_image_opts(name, writable=writable) for name in names]
        return [
            msgspec.structs.replace(place, direct=direct or place.direct, shared=shared or place.shared)
            for place in found
        ]
    for name in names:
        if fmt in OTHERS:
            raise cannot_open(name, f"mpconv cannot read {fmt} images yet (-f raw takes its bytes as they are)")
        if fmt is not None and fmt not in READABLE:
            raise cannot_open(name, f"Unknown driver '{fmt}'")
        if not name:
            raise cannot_open(name, "The 'file' block driver requires a file name")
    return [Place(url=name, direct=direct, shared=shared, format=fmt) for name in names]


def probed(names: Sequence[str], fmt: str | None, image_opts: bool) -> bool:
    """Whether the format was left open, so that the images' first bytes must tell."""
    if not image_opts:
        return fmt is None
    from mpconv.cli.qemu.image_opts import names_format  # noqa: PLC0415 - few need it

    return not all(map(names_format, names))
