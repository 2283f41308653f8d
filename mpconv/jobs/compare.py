"""Two images compared, by the same workers that copy; what both are known to be zero at is not read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from mpconv import transports
from mpconv.coordinator import Coordinator
from mpconv.formats.base import Image
from mpconv.formats.layers import first_unlike
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.formats.qcow2.image import Qcow2Image
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy.planning import LEASE, farthest, held
from mpconv.jobs.image_pair import Pair
from mpconv.model.errors import StatusWithdrawn
from mpconv.model.limits import RETRY_SECONDS
from mpconv.model.place import NO_TRUST, Place, Trust
from mpconv.model.units import SECTOR, align_down
from mpconv.options.tuning import BUFFER, workers_for
from mpconv.protocol.job import Job
from mpconv.transports.retry import Retry, Tell, Throttled


class Options(Struct, frozen=True, kw_only=True):
    """How to compare. `strict`: sizes and block status count too. `shared`: programs may have the images open. `trust`:
    what these may open besides themselves. `hole_map`: as with a copy.

    As with qemu-img, what is written to raw images meanwhile is nobody's fault but the writer's.
    """

    strict: bool = False
    shared: bool = False
    requests: int | None = None
    workers: int | None = None
    trust: Trust = NO_TRUST
    retry_for: float = RETRY_SECONDS
    hole_map: bool = True


class Verdict(Struct, frozen=True):
    """What was found. `differs_at`: the byte that qemu-img names, None when the images are equal.

    That is the beginning of the first sector that differs, or the end of a file inside it (read off qemu-img).
    """

    sizes_differ: bool = False
    status_differs_at: int | None = None
    differs_at: int | None = None


async def compare(places: tuple[Place, Place], options: Options, context: JobContext) -> Verdict:
    """Compare two images. Raises MpconvError when one cannot be read."""
    try:
        return await _compare(places, options, context, trusting=options.hole_map)
    except StatusWithdrawn:
        return await _compare(places, options, context, trusting=False)


async def _compare(places: tuple[Place, Place], options: Options, context: JobContext, *, trusting: bool) -> Verdict:
    images: list[Image] = []
    tell = Throttled(context.observer.warn)
    try:
        found: list[Place] = []
        for place in places:
            how = OpenOptions(
                looking=True, trusting=trusting, trust=options.trust, retry=Retry(options.retry_for), tell=tell
            )
            wanted = msgspec.structs.replace(transports.settled(place), shared=place.shared or options.shared)
            image, resolved = await open_and_resolve([wanted], how)
            images.append(image)
            found += resolved
        first, second = images
        if options.strict and first.size != second.size:
            return Verdict(sizes_differ=True)
        pair = Pair(first, second)
        unlike = await first_unlike(first, second, pair.size, trusting=trusting) if options.strict else None
        size = pair.size if unlike is None else unlike
        sizes = [[store.size for store in image.stores] for image in images]
        at = await _first_difference(found, sizes, Pair(first, second), size, options, context, tell)
        if at is not None:
            ends = [size for image in images for size in _raw_ends(image) if size <= at]
            named = max([align_down(at, SECTOR), *ends])
            return Verdict(sizes_differ=at >= min(first.size, second.size), differs_at=named)
        return Verdict(sizes_differ=first.size != second.size, status_differs_at=unlike)
    finally:
        for image in images:
            await image.close()


def _raw_ends(image: Image) -> Iterator[int]:
    """Where raw files of the chain end: QEMU goes up to there, and on from there."""
    layer: Image | None = image
    while layer is not None:
        if layer.format == "raw":
            yield layer.stores[0].size
        layer = layer.backing if isinstance(layer, Qcow2Image) else None


async def _first_difference(
    places: list[Place],
    sizes: list[list[int]],
    pair: Pair,
    size: int,
    options: Options,
    context: JobContext,
    tell: Tell,
) -> int | None:
    if not size:
        return None
    cores = len(os.sched_getaffinity(0))
    count, requests = workers_for(size, cores, options, round_trips=farthest(pair.stores))
    job = Job(
        id=1,
        sources=[places[0]],
        source_sizes=sizes[0],
        target_sizes=sizes[1],
        targets=[places[1]],
        size=size,
        in_order=False,
        sparse_size=SECTOR,
        zero_initialised=True,
        requests=requests,
        durable=False,
        compare=True,
        retry_for=options.retry_for,
        buffer_size=BUFFER,
        lease_size=LEASE,
    )
    coordinator = Coordinator(job, pair, context.workers, count, context.observer, tell=tell, holds=held(places, pair))
    await coordinator.run()
    return coordinator.differs_at
