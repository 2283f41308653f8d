"""The digest of one image's guest disk, by the same workers that copy; what is known to be zero is not read."""

from __future__ import annotations

import os

import msgspec
from msgspec import Struct

from mpconv import transports
from mpconv.coordinator import Coordinator
from mpconv.core.digests import Sums
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy.planning import held
from mpconv.jobs.excerpt import Excerpt
from mpconv.model.digest import text
from mpconv.model.errors import StatusWithdrawn
from mpconv.model.limits import RETRY_SECONDS
from mpconv.model.place import NO_TRUST, Place, Trust
from mpconv.model.units import SECTOR
from mpconv.options.tuning import CopySettings, workers_for
from mpconv.protocol.job import Job


class Options(Struct, frozen=True, kw_only=True):
    """How to read. `shared`: a program may have the image open. `snapshot`: the internal one that is meant. `trust`:
    what the image may open besides itself. `retry_for`: seconds for which a server that does not answer is tried again.
    `hole_map`: as with a copy.
    """

    requests: int | None = None
    workers: int | None = None
    shared: bool = False
    snapshot: str | None = None
    trust: Trust = NO_TRUST
    retry_for: float = RETRY_SECONDS
    hole_map: bool = True


class Checksum(Struct, frozen=True):
    """Of a guest disk of `size` bytes."""

    digest: str
    size: int


async def checksum(place: Place, options: Options, context: JobContext) -> Checksum:
    """Read one image. Raises MpconvError when that cannot be."""
    try:
        return await _checksum(place, options, context, trusting=options.hole_map)
    except StatusWithdrawn as error:
        context.observer.warn(f"{error}: everything is read")
        return await _checksum(place, options, context, trusting=False)


async def _checksum(place: Place, options: Options, context: JobContext, *, trusting: bool) -> Checksum:
    wanted = msgspec.structs.replace(
        transports.settled(place), snapshot=options.snapshot, shared=place.shared or options.shared
    )
    how = context.opening(options.retry_for, locked=True, trusting=trusting, trust=options.trust)
    image, places = await open_and_resolve([wanted], how)
    try:
        context.observer.phase("read")
        sums = await read_sums(image, image, places, options, how, context)
        return Checksum(text(image.size, sums.total), image.size)
    finally:
        await image.close()


async def read_sums(
    image: Image,
    part: Image | Excerpt,
    places: list[Place],
    effort: CopySettings,
    how: OpenOptions,
    context: JobContext,
) -> Sums:
    """The sums of the blocks of `part`, the image at `places` or an excerpt of it, read by workers. `how`: as it was
    opened.
    """
    if not part.size:
        return Sums()
    cores, away = len(os.sched_getaffinity(0)), max(store.origin.round_trip for store in image.stores)
    count, requests = workers_for(part.size, cores, effort, round_trips=away)
    job = Job(
        id=1,
        sources=places,
        source_sizes=[store.size for store in image.stores],
        targets=[],
        size=part.size,
        in_order=False,
        sparse_size=SECTOR,
        zero_initialised=True,
        requests=requests,
        durable=False,
        retry_for=how.retry.seconds if how.retry is not None else 0.0,
        digest=True,
    )
    context.observer.progress(0, part.size, 0)
    coordinator = Coordinator(
        job, part, context.workers, count, context.observer, tell=how.tell, holds=held(places, image)
    )
    await coordinator.run()
    return coordinator.digests
