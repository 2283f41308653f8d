"""How a copy is divided: buffers, leases, workers. What is open is looked at, nothing is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from mpconv.formats.base import Image
from mpconv.jobs.copy.portable import places_for_all
from mpconv.jobs.copy.target import Target
from mpconv.jobs.image_pair import Pair
from mpconv.model.digest import BLOCK
from mpconv.model.place import Place
from mpconv.model.units import MiB, align_down, align_up
from mpconv.options.copy import Options
from mpconv.options.tuning import BUFFER, words, workers_for
from mpconv.protocol.job import Job
from mpconv.protocol.messages import MAX_CLUSTERS
from mpconv.transports.base import Transport

LEASE = 16 * MiB
_LEASE_IN_ORDER = 64 * MiB
"""Larger: between one lease and the next nothing is written for as long as it takes to say so."""
_COMPRESSED = 8 * MiB
"""A twelfth of the time less than with buffers of 2 MiB: fewer leases, and fewer turns between threads."""
_COMPRESSED_SHARES = 32
"""Of a small image: the buffers are smaller, so that all cores have work until the end. They stay a multiple of 2 MiB,
which all clusters and the blocks of digests divide.
"""
_LARGEST_BUFFER = 16 * MiB


def plan(sources: list[Place], source: Image, targets: Sequence[Target], options: Options) -> tuple[Job, int]:
    """The job of copying to these targets, which are open, and how many workers it takes. Several targets are raw."""
    alone = options.in_order and all(target.written.ordered for target in targets) and not options.compress
    alone = alone and options.listening is None
    places = [target.place for target in targets]
    if options.listening is not None:
        sources, places = places_for_all(sources, targets, options.listening)
    clusters = targets[0].clusters
    buffer_size = BUFFER
    lease_size = _LEASE_IN_ORDER if options.in_order else LEASE
    if clusters is not None:
        if clusters.compression is not None:
            share = min(_COMPRESSED, align_up(max(1, source.size // _COMPRESSED_SHARES), BUFFER))
            buffer_size = min(share, MAX_CLUSTERS * clusters.size)
        lease_size = buffer_size  # a token tells the places of one buffer
    else:
        wish = max(target.written.limits.optimal_write for target in targets)
        buffer_size = max(BUFFER, min(_LARGEST_BUFFER, wish))
        if options.digests:
            buffer_size = align_down(buffer_size, BLOCK)
    count, requests = workers_for(
        source.size,
        len(os.sched_getaffinity(0)),
        options,
        alone=alone,
        compressing=options.compress,
        round_trips=sum(_round_trips(source, targets)),
        buffer_size=buffer_size,
    )
    if not all(target.divisible for target in targets):
        count = 1
    if options.listening is not None and options.workers == 0:
        count = 0
    job = Job(
        id=1,
        sources=sources,
        source_sizes=[store.size for store in source.stores],
        targets=places,
        size=source.size,
        in_order=options.in_order,
        sparse_size=options.sparse_size,
        zero_initialised=all(target.zero_initialised for target in targets),
        reads_zeros=[target.zero_initialised for target in targets],
        requests=requests,
        durable=options.cache.flushes,
        write_through=options.cache.through,
        salvage=options.salvage,
        offload=options.offload and clusters is None,
        digest=options.digests,
        clusters=clusters,
        retry_for=options.retry_for,
        drop_after=options.drop_after,
        buffer_size=buffer_size,
        lease_size=lease_size,
    )
    return job, count


def _round_trips(source: Image, targets: Sequence[Target]) -> tuple[float, float]:
    """Seconds, of the source and of the slowest target."""
    return farthest(source.stores), farthest([target.written for target in targets])


def held(sources: list[Place], source: Image | Pair, targets: Sequence[Target] = ()) -> list[Transport] | None:
    """What the coordinator has open and can do without while workers copy; None: of what is not raw it reads or writes
    tables meanwhile.
    """
    if any(place.format != "raw" for place in sources) or any(target.writer is not None for target in targets):
        return None
    return [*source.stores, *(store for target in targets for store in target.stores)]


async def give_back(*stores: Sequence[Transport]) -> None:
    """Until they are needed again, for who is to open the same."""
    for store in itertools.chain(*stores):
        await store.release()


def farthest(stores: Sequence[Transport]) -> float:
    """The longest of their round trips, in seconds."""
    return max((store.origin.round_trip for store in stores), default=0.0)


def effort_words(job: Job, count: int, source: Image, targets: Sequence[Target]) -> str:
    """How many workers and buffers, and why, for `-v`."""
    cores = len(os.sched_getaffinity(0))
    return words(count, job.requests, job.buffer_size, cores, *_round_trips(source, targets))
