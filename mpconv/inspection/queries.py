"""What is told of images: no worker process is started, and nothing is written but where that is asked for.

Backing files and data files that an image names are opened only as far as `trust` allows; `mpconv.Trust(backing=[""])`
is the image's own directory. `image_format`: raw or qcow2; None: the first bytes tell. A qcow2 image that a program of
QEMU's writes to is InUse, as with qemu-img, unless it is a `mpconv.Place` that is `shared`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mpconv.model.errors import NoChecks, UsageError
from mpconv.model.place import NO_TRUST, Name, OnWarning, Place, Trust, place_of

if TYPE_CHECKING:
    from mpconv.formats.base import Image
    from mpconv.formats.qcow2.check.accounts import Report
    from mpconv.formats.qcow2.options import Qcow2Options
    from mpconv.inspection.block_map import Entry
    from mpconv.inspection.doctor.findings import Examination
    from mpconv.inspection.info import Info
    from mpconv.inspection.measure import Measure


async def info(image: Name, *, image_format: str | None = None) -> Info:
    """An image's format and size, and how much room it takes up. Nothing that it names is opened."""
    from mpconv.inspection import info as inspection  # noqa: PLC0415  (as below: who needs one does without the rest)

    return await inspection.info(place_of(image, image_format))


async def backing_chain(image: Name, *, image_format: str | None = None, trust: Trust = NO_TRUST) -> list[Info]:
    """The same of an image and of all that lies below it. ImageError for a backing file that `trust` does not allow."""
    from mpconv.inspection import info as inspection  # noqa: PLC0415

    return await inspection.chain(place_of(image, image_format), trust)


async def map(
    image: Name,
    start: int = 0,
    length: int | None = None,
    *,
    image_format: str | None = None,
    trust: Trust = NO_TRUST,
    on_warning: OnWarning | None = None,
) -> list[Entry]:
    """Where an image's data lies, and where holes are, from guest byte `start` on. `length`: bytes to look at; None:
    to the end. Ascending, without gaps.
    """
    if start < 0 or (length is not None and length < 0):
        raise UsageError("start and length of a map are at least 0")
    from mpconv.inspection.block_map import block_map  # noqa: PLC0415

    place = place_of(image, image_format)
    async with _opened(place, trust, on_warning) as found:
        return await block_map(found, start, length, on_warning or _silently, place.offset)


async def measure(
    image: Name | int,
    target_format: str = "raw",
    qcow2: Qcow2Options | None = None,
    *,
    image_format: str | None = None,
    snapshot: str | None = None,
    trust: Trust = NO_TRUST,
    refusal: str | None = None,
    on_warning: OnWarning | None = None,
) -> Measure:
    """How many bytes a copy of an image takes up, or an empty disk of so many bytes. `qcow2`: how one is made; None: as
    qemu-img does. `refusal`: why it cannot be, said once the image is open. `on_warning` hears of anything else.
    """
    from mpconv.formats.qcow2.options import Qcow2Options  # noqa: PLC0415

    options = qcow2 or Qcow2Options()
    if refusal is None:
        refusal = _unmeasurable(image, target_format, options)
    if isinstance(image, int):
        return await _measured(image, target_format, options, refusal)
    place = place_of(image, image_format)
    async with _opened(replace(place, snapshot=snapshot or place.snapshot), trust, on_warning) as found:
        return await _measured(found, target_format, options, refusal)


def _unmeasurable(image: Name | int, target_format: str, options: Qcow2Options) -> str | None:
    if isinstance(image, int) and image < 0:
        return f"a disk has at least 0 bytes, and not {image}"
    if target_format not in ("raw", "qcow2"):
        return f"only raw and qcow2 can be measured for, not '{target_format}'"
    if target_format == "raw":
        return None
    from mpconv.formats.qcow2.options import PREALLOCATIONS  # noqa: PLC0415

    if options.preallocation not in PREALLOCATIONS:
        return f"preallocation is one of {', '.join(PREALLOCATIONS)}, and not '{options.preallocation}'"
    return options.cluster_refusal() or options.refcount_refusal("version=3")


async def _measured(image: Image | int, target_format: str, options: Qcow2Options, refusal: str | None) -> Measure:
    from mpconv.inspection import measure as inspection  # noqa: PLC0415

    if refusal is not None:
        raise UsageError(refusal)
    size = image if isinstance(image, int) else image.size
    if target_format == "raw":
        return inspection.for_raw(size)
    if isinstance(image, int):
        inspection.check_size(size, options)
        return inspection.for_qcow2(size, options)
    return await inspection.of_image(image, options)


async def check(
    image: Name, *, image_format: str | None = None, on_finding: Callable[[str], None] | None = None
) -> Report:
    """Look for errors in a qcow2 image, which is only read. `on_finding` hears of each, as qemu-img check words it.
    NoChecks for a raw image, ImageError for one that cannot be checked.
    """
    from mpconv import transports  # noqa: PLC0415
    from mpconv.formats.opening import found_format  # noqa: PLC0415
    from mpconv.transports.base import Access, Sharing, cannot_open  # noqa: PLC0415

    place = place_of(image, image_format)
    store = await transports.open_place(place, Access.READ)
    try:
        fmt = place.format or await found_format(store)
        if fmt == "raw":
            raise NoChecks("This image format does not support checks")
        if fmt != "qcow2":
            raise cannot_open(place.url, f"mpconv cannot read {fmt} images yet")
        if not place.shared:
            store.claim(Sharing.NOTHING)
        from mpconv.formats.qcow2.check import scan  # noqa: PLC0415

        return await scan.check(store, on_finding or _silently)
    finally:
        await store.close()


async def examine(
    urls: str | Sequence[str],
    *,
    image_format: str | None = None,
    seconds: float = 3.0,
    scratch: str | None = None,
    on_examined: Callable[[Examination], None] | None = None,
) -> list[Examination]:
    """What storage can do and what is in the way, each problem with what to do about it. Of several URLs the first is
    the source, and of that format. `seconds`: for measuring, of each. `scratch`: a target of which a part may be
    OVERWRITTEN to test it. `on_examined` hears of each when all is known of it.
    """
    from mpconv.inspection.doctor import examination  # noqa: PLC0415

    names = [urls] if isinstance(urls, str) else list(urls)
    if scratch is not None and scratch not in names:
        names.append(scratch)
    if not names:
        raise UsageError("Expecting the URL of an image, or those of a source and its targets")
    how = examination.ExaminationOptions(seconds=seconds, format=image_format, scratch=scratch)
    return await examination.examine(names, how, on_examined or _silently)


def _silently(_: object) -> None:
    """Nobody wants to know."""


@contextlib.asynccontextmanager
async def _opened(place: Place, trust: Trust, on_warning: OnWarning | None) -> AsyncIterator[Image]:
    """One image, open for reading while the context lasts."""
    from mpconv.formats.opening import OpenOptions, open_source  # noqa: PLC0415

    image = await open_source([place], OpenOptions(looking=True, trust=trust, tell=on_warning or _silently))
    try:
        yield image
    finally:
        await image.close()
