"""One image from source to target: both opened, workers chosen, the coordinator run, the target flushed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from mpconv import transports
from mpconv.cache import CACHE_MODES, CacheMode
from mpconv.coordinator import Coordinator, Observer
from mpconv.errors import Fatal, InUse, MpconvError, NoSuchImage, StatusWithdrawn, UsageError
from mpconv.formats.image import Image
from mpconv.formats.opening import How, found_format, open_and_resolve
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.job import NO_TRUST, Job, Place, Trust
from mpconv.transports.base import Access, Opening, Transport
from mpconv.units import MiB, human
from mpconv.workers.launch.local import LocalWorkers

LEASE = 16 * MiB
_LEASE_IN_ORDER = 64 * MiB
"""Larger: between one lease and the next nothing is written for as long as it takes to say so."""
BUFFER = 2 * MiB
_LARGEST_BUFFER = 16 * MiB
_WORTH_A_WORKER = 64 * MiB
_MOST_WORKERS = 8
_REQUESTS_EACH = 4
_FEWEST_REQUESTS = 8


class Effort(Protocol):
    """How much to do at a time. None: what suits the image and the machine."""

    @property
    def requests(self) -> int | None: ...
    @property
    def workers(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to copy; sizes in bytes.

    `requests` and `workers`: None for what suits the image and the machine. `create`: make the target anew.
    `target_is_zero`: it exists and reads as zeros. `rate`: bytes a second, 0 for no limit. `shared`: a program may
    have the source open. `salvage`: what cannot be read becomes zeros. `offload`: have data copied where it lies.
    `probe_target`: refuse what looks like another format than raw. `refusal`: why it cannot be, said once the
    sources are open, as qemu-img does.

    `target_format`: raw or qcow2. `qcow2`: how a qcow2 target is made; of one that exists only its backing file counts,
    which says that the target has one; None for raw. `compression_level`: None for the codec's own. `snapshot`: the
    source's internal snapshot to copy, by id or name, or as `snapshot.id=,snapshot.name=`. `trust`: what a source may
    open besides itself.
    """

    in_order: bool = True
    sparse_size: int = 4096
    create: bool = True
    target_is_zero: bool = False
    preallocation: str = "off"
    requests: int | None = None
    workers: int | None = None
    cache: CacheMode = CACHE_MODES["writeback"]
    rate: int = 0
    shared: bool = False
    salvage: bool = False
    offload: bool = False
    probe_target: bool = False
    refusal: str | None = None
    target_format: str = "raw"
    qcow2: Qcow2Options | None = None
    compress: bool = False
    compression_level: int | None = None
    snapshot: str | None = None
    trust: Trust = NO_TRUST


def workers_for(size: int, cores: int, options: Effort, *, alone: bool = False) -> tuple[int, int]:
    """Worker processes, and buffers in flight over all of them, for an image of `size` bytes.

    More than 8 processes on one host gain nothing on one server, and a small image is copied before a second one has
    started. `alone`: in order, over a connection that keeps the order, one process writes at a time, and alone it need
    not stop between one lease and the next. qemu-img's 8 requests are the least in flight; each process drives four
    more without effort.
    """
    count = options.workers
    if count is None:
        count = 1 if alone else max(1, min(cores, _MOST_WORKERS, size // _WORTH_A_WORKER + 1))
    total = options.requests if options.requests is not None else max(_FEWEST_REQUESTS, _REQUESTS_EACH * count)
    return min(count, total), total


async def convert(
    sources: list[Place],
    target: Place,
    options: Options,
    local: LocalWorkers,
    observer: Observer,
    on_warning: Callable[[str], None],
) -> None:
    """Copy one image, or several one after the other. Raises MpconvError; the message says how much was written when
    it was only a part.
    """
    try:
        await _copy(sources, target, options, local, observer, on_warning, trusting=True)
    except StatusWithdrawn as error:
        on_warning(f"{error}: the copy begins anew and reads everything")
        await _copy(sources, target, options, local, observer, on_warning, trusting=False)


async def _copy(
    sources: list[Place],
    place: Place,
    options: Options,
    local: LocalWorkers,
    observer: Observer,
    on_warning: Callable[[str], None],
    *,
    trusting: bool,
) -> None:
    how = How(locked=not options.shared, trusting=trusting, trust=options.trust)
    named = options.snapshot or ""
    too_many = len(sources) > 1 and named != "" and not named.startswith("snapshot.")
    snapshot = None if too_many else options.snapshot
    wanted = [msgspec.structs.replace(source, snapshot=snapshot) for source in sources]
    source, sources = await open_and_resolve(wanted, how)
    target: Transport | None = None
    try:
        if too_many:
            raise UsageError("No support for concatenating multiple snapshot")
        if options.refusal is not None:
            raise UsageError(options.refusal)
        if options.target_format != "raw":
            raise Fatal(f"mpconv cannot write {options.target_format} images yet")
        target = await _open_target(source, place, options)
        if target.fixed_size and target.writable < source.size:
            raise UsageError(
                f"output file is smaller than input file ({target.size} of {source.size} bytes) in '{target.name}'"
            )
        if options.probe_target:
            await found_format(target)
            if options.compress:
                raise UsageError("Compression not supported for this file format")
            on_warning(f"Image format was not specified for '{target.name}' and probing guessed raw")
        await _run(sources, source, place, target, options, local, observer)
    finally:
        await source.close()
        if target is not None:
            await target.close()


async def _run(
    sources: list[Place],
    source: Image,
    place: Place,
    target: Transport,
    options: Options,
    local: LocalWorkers,
    observer: Observer,
) -> None:
    count, requests = workers_for(
        source.size, len(os.sched_getaffinity(0)), options, alone=options.in_order and target.ordered
    )
    if not target.rewrites:
        count = 1
    zeros = options.sparse_size > 0 and (options.target_is_zero or (options.create and target.zero_initialised))
    job = Job(
        id=1,
        sources=sources,
        source_sizes=[store.size for store in source.stores],
        targets=[place],
        size=source.size,
        in_order=options.in_order,
        sparse_size=options.sparse_size,
        zero_initialised=zeros,
        requests=requests,
        durable=options.cache.flushes,
        write_through=options.cache.through,
        salvage=options.salvage,
        offload=options.offload,
        buffer_size=max(BUFFER, min(_LARGEST_BUFFER, target.limits.optimal_write)),
        lease_size=_LEASE_IN_ORDER if options.in_order else LEASE,
    )
    coordinator = Coordinator(job, source, local, count, observer, rate=options.rate, block=target.rewrites or 1)
    try:
        observer.progress(0, source.size, 0)
        if job.size:
            await coordinator.run()
        if options.cache.flushes:
            observer.phase("flush")
            await target.flush()
    except MpconvError as error:
        if coordinator.may_have_written or target.zero_initialised:
            error.why += (
                f" (the target is incomplete: {human(coordinator.bytes_done)} of {human(source.size)} written;"
                " run the command again)"
            )
        raise


async def _open_target(source: Image, place: Place, options: Options) -> Transport:
    """The target, made anew unless `create` is off; refused when it is a source itself."""
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=options.preallocation)
    existing: Transport | None = None
    try:
        existing = await transports.open_place(place, Access.WRITE, locked=True)
    except NoSuchImage:
        if not options.create:
            raise
    except InUse:
        existing = await transports.open_place(place, Access.WRITE)
        same = _same(source, existing)
        await existing.close()
        if same is not None:
            raise same from None
        raise
    except Fatal:
        if not options.create or not transports.is_local(place.url):
            raise  # of a file the attempt to make it tells what is wrong, as with qemu-img
    if existing is not None:
        same = _same(source, existing)
        if same is not None:
            await existing.close()
            raise same
        if not options.create or not existing.creatable:
            return existing
        await existing.close()
    return await transports.connect(place.url, Access.WRITE, create_size=source.size, opening=opening)


def _same(source: Image, target: Transport) -> UsageError | None:
    for store in source.stores:
        if store.identity == target.identity:
            return UsageError(f"source and target are the same image: '{store.name}'")
    return None
