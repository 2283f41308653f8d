"""From places to an image: which format, which files below it, and whether they may be opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from mpconv import transports
from mpconv.formats.base import Image
from mpconv.formats.concatenation import Concatenation
from mpconv.formats.raw import RawImage
from mpconv.model.errors import ImageError
from mpconv.model.place import Place, Trust
from mpconv.transports.base import Access, Sharing, Transport, cannot_open
from mpconv.transports.retry import Retry, Tell, silently

if TYPE_CHECKING:
    from mpconv.formats.qcow2.header import Header

READABLE = ("raw", "qcow2")


class OpenOptions(Struct, frozen=True):
    """How images are opened. `locked`: QEMU's locks are taken, as for a copy; `looking`: as for a look, which does not
    mind what is written meanwhile into raw images and data files. `trusting`: as RawImage's. `trust`: what may be
    opened besides; None: the places say it all. `keeps_backing`: as Qcow2Image's, of the topmost one. `alone`: nothing
    is opened besides, for who wants to know of the image and not its guest's bytes. `retry`, `tell`: of a server's
    absence once the image is open; None: it ends what is being read.
    """

    locked: bool = False
    looking: bool = False
    trusting: bool = True
    trust: Trust | None = None
    keeps_backing: bool = False
    alone: bool = False
    retry: Retry | None = None
    tell: Tell = silently

    async def store(self, place: Place) -> Transport:
        """The store at a place, for reading."""
        return await transports.open_place(place, Access.READ, locked=self.locked, retry=self.retry, tell=self.tell)

    def look(self, store: Transport, place: Place, sharing: Sharing) -> None:
        """Take the locks for a look, now that it is known what the store is. InUse when it is written to."""
        if self.looking and not place.shared:
            store.claim(sharing)


_AS_A_RULE = OpenOptions()


async def open_source(places: Sequence[Place], how: OpenOptions = _AS_A_RULE) -> Image:
    """The image at one place, or at several, one after the other."""
    image, _ = await open_and_resolve(places, how)
    return image


async def open_and_resolve(places: Sequence[Place], how: OpenOptions = _AS_A_RULE) -> tuple[Image, list[Place]]:
    """The same, and the places with all that was found out, so that somebody else opens the same files."""
    parts: list[Image] = []
    found: list[Place] = []
    try:
        for place in places:
            image, resolved = await _open(place, how, ())
            parts.append(image)
            found.append(resolved)
    except BaseException:
        for part in parts:
            await part.close()
        raise
    return (parts[0] if len(parts) == 1 else Concatenation(parts)), found


async def _open(place: Place, how: OpenOptions, above: tuple[tuple[object, ...], ...]) -> tuple[Image, Place]:
    """`above`: the identities of the stores whose backing file this one is, directly or not."""
    store = await how.store(place)
    try:
        fmt = place.format or await found_format(store, None if how.alone else how.tell)
        if fmt == "raw":
            _no_snapshot(place)
            how.look(store, place, Sharing.ALL)
            return RawImage(store, trusting=how.trusting), place.resolved("raw", store.marks)
        if fmt != "qcow2":
            raise cannot_open(place.url, f"mpconv cannot read {fmt} images yet (-f raw takes its bytes as they are)")
        how.look(store, place, Sharing.NOTHING)
        return await _open_qcow2(store, place, how, above)
    except BaseException:
        await store.close()
        raise


def _no_snapshot(place: Place) -> None:
    if place.snapshot is not None:
        why = "Block format 'raw' used by device '' does not support temporarily loading internal snapshots"
        raise ImageError(f"Failed to load snapshot: {why}")


async def _open_qcow2(
    store: Transport, place: Place, how: OpenOptions, above: tuple[tuple[object, ...], ...]
) -> tuple[Image, Place]:
    from mpconv.formats.qcow2.image import Qcow2Image, read_metadata  # noqa: PLC0415  (raw copies do without)

    if store.identity in above:
        raise cannot_open(store.name, "the chain of backing files is a loop", ImageError)
    chain = (*above, store.identity)
    metadata = await read_metadata(store, place.snapshot)
    if how.alone:
        return Qcow2Image(store, metadata), place.resolved("qcow2", store.marks)
    header = metadata.header
    data_place, backing_place = place.data_file, place.backing
    if how.trust is not None:
        from mpconv.formats import trust  # noqa: PLC0415

        place = place.marked(store.marks)
        data_place = trust.data_place(place, header.data_file, how.trust) if header.external_data else None
        if header.backing_file is not None:
            if len(chain) > trust.MOST_LAYERS:
                raise cannot_open(store.name, f"more than {trust.MOST_LAYERS} backing files", ImageError)
            backing_place = trust.backing_place(place, header.backing_file, header.backing_format, how.trust)
    _all_known(store, header, data_place, backing_place)
    data: Transport | None = None
    backing: Image | None = None
    try:
        if data_place is not None:
            data = await how.store(data_place)
            data_place = data_place.marked(data.marks)
            how.look(data, data_place, Sharing.WRITES)
        if backing_place is not None:
            below = replace(how, keeps_backing=False)
            backing, backing_place = await _open(backing_place, below, chain)
    except BaseException:
        if data is not None:
            await data.close()
        raise
    image = Qcow2Image(
        store, metadata, data=data, backing=backing, keeps_backing=how.keeps_backing, trusting=how.trusting
    )
    return image, place.resolved("qcow2", store.marks, backing=backing_place, data_file=data_place)


def _all_known(store: Transport, header: Header, data: Place | None, backing: Place | None) -> None:
    """Without the files that it is made of an image would read as something else."""
    for what, wanted, name, where in (
        ("data file", header.external_data, header.data_file, data),
        ("backing file", header.backing_file is not None, header.backing_file, backing),
    ):
        if wanted and where is None:
            raise cannot_open(
                store.name,
                f"the image asks for the {what} '{transports.redacted(name or '')}', and nobody opened it",
                ImageError,
            )


async def probed(place: Place, tell: Tell) -> Place:
    """The place with the format that its first bytes tell, and with what lies there."""
    store = await transports.open_place(place, Access.READ)
    try:
        return place.resolved(await found_format(store, tell), store.marks)
    finally:
        await store.close()


async def found_format(store: Transport, tell: Tell | None = None) -> str:
    """What the first bytes look like: a name of qemu-img's. `tell`: for who takes guest bytes out of it, or puts
    any in: then a LUN or a device is raw until somebody says otherwise, since a guest can write any header into the
    first sector of its disk, and `tell` hears what it looks like.
    """
    from mpconv.formats.probe import PROBED, probe  # noqa: PLC0415  (workers do without)

    header = memoryview(bytearray(min(PROBED, store.size)))
    await store.read_into(0, header)
    found = probe(bytes(header), store.name, store.size)
    if tell is not None and found != "raw" and not store.creatable:
        tell(
            f"'{store.name}' looks like {found}, but its guest can make it so: it is taken for raw (or say -f {found})"
        )
        return "raw"
    if found not in READABLE:
        why = f"it looks like {found}, which mpconv cannot read yet; -f raw copies its bytes as they are"
        raise cannot_open(store.name, why)
    return found
