"""The sources read again where a copy did not read them, since a hole map called that zeros: a map is not proved by
what was read with it.
"""

from __future__ import annotations

from mpconv import transports
from mpconv.coordinator import Coordinator
from mpconv.formats.base import Image
from mpconv.formats.opening import open_and_resolve
from mpconv.jobs.checksum import read_sums
from mpconv.jobs.context import JobContext
from mpconv.jobs.excerpt import Excerpt
from mpconv.jobs.verify import unequal
from mpconv.model.digest import REGION
from mpconv.model.errors import MpconvError, StatusWithdrawn, Unequal
from mpconv.model.extent import Kind
from mpconv.model.place import Place
from mpconv.options.copy import Options
from mpconv.transports.retry import AT_ONCE, keep_trying

Ranges = list[tuple[int, int]]


async def verify_source(
    places: list[Place], source: Image, copied: Coordinator, options: Options, context: JobContext
) -> None:
    """Unequal, with the first byte, when there is data of the `source`, which lies at `places`, that was not copied.
    What an image's own tables call zeros is so. Of a copy that an earlier run began all of the source is read: how that
    one was told of zeros nobody knows any more.
    """
    named = copied.named_zero
    if named is not None and not named:
        return
    context.observer.phase("verify")
    how = context.opening(options.retry_for, locked=not options.shared, trusting=False)
    at: int | None = None
    try:
        image, found = await keep_trying(lambda: open_and_resolve(places, how), how.retry or AT_ONCE, how.tell)
        try:
            part = Excerpt(image, image.size, [(0, image.size)] if named is None else named)
            sums = await read_sums(image, part, found, options, how, context)
            wrong = next(sums.regions(), None) if named is not None else next(iter(unequal(copied.digests, sums)), None)
            if wrong is not None:
                told = await _named_now(source, wrong) if named is None else named
                at = await _first_data(image, wrong, told)
        finally:
            await image.close()
    except MpconvError as error:
        error.why += " (everything is written, but the source is not verified)"
        raise
    if at is not None:
        names = ", ".join(transports.redacted(place.url) for place in places)
        raise Unequal(f"the hole map of '{names}' hid data at byte {at}: use --no-hole-map")


async def _first_data(image: Image, region: int, named: Ranges) -> int:
    """The first byte that is not 0 of what was named in this region; the region's first if there is none."""
    start, stop = region * REGION, min((region + 1) * REGION, image.size)
    for its_start, its_end in named:
        first, end = max(its_start, start), min(its_end, stop)
        if first < end:
            data = bytearray(end - first)
            await image.read_into(first, memoryview(data))
            zeros = end - first - len(data.lstrip(b"\0"))
            if first + zeros < end:
                return first + zeros
    return start


async def _named_now(source: Image, region: int) -> Ranges:
    """What the map names zeros there."""
    named: Ranges = []
    at, stop = region * REGION, min((region + 1) * REGION, source.size)
    try:
        while at < stop:
            extents = await source.block_status(at, stop - at)
            named += [(extent.start, extent.end) for extent in extents if extent.kind is Kind.ZERO]
            at = extents[-1].end
    except StatusWithdrawn:
        pass
    return named
