"""From places to an image."""

from __future__ import annotations

from mpconv import transports
from mpconv.formats.concatenation import Concatenation
from mpconv.formats.raw import RawImage
from mpconv.job import Place
from mpconv.transports.base import Access, cannot_open

Image = RawImage | Concatenation
"""What can be read: `size`, `read_into`, `block_status`, `close`."""


async def open_source(places: list[Place], *, locked: bool = False, trusting: bool = True) -> Image:
    """The image at one place, or at several, one after the other. `trusting`: as RawImage's."""
    parts: list[RawImage] = []
    try:
        for place in places:
            if place.format not in (None, "raw"):
                raise cannot_open(transports.redacted(place.url), f"mpconv cannot read {place.format} images yet")
            store = await transports.open_place(place, Access.READ, locked=locked)
            parts.append(RawImage(store, trusting=trusting))
    except BaseException:
        for part in parts:
            await part.close()
        raise
    return parts[0] if len(parts) == 1 else Concatenation(parts)


async def check_formats(image: Image) -> None:
    """Fatal when one of the stores holds another format than raw: its guest would see the format's own bytes."""
    from mpconv.formats.probe import PROBED, probe  # noqa: PLC0415  (workers do without)

    for store in image.stores:
        header = memoryview(bytearray(min(PROBED, store.size)))
        await store.read_into(0, header)
        found = probe(bytes(header), store.name, store.size)
        if found != "raw":
            why = f"it looks like {found}, which mpconv cannot read yet; -f raw copies its bytes as they are"
            raise cannot_open(store.name, why)
