"""One image from source to target: both opened, workers chosen, the coordinator run, the target flushed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from mpconv import transports
from mpconv.coordinator import Coordinator
from mpconv.errors import MpconvError, NoSuchImage, StatusWithdrawn, UsageError
from mpconv.formats.raw import RawImage
from mpconv.job import Job
from mpconv.transports.base import Access, Transport
from mpconv.units import MiB, human
from mpconv.workers.launch.local import LocalWorkers

_LEASE = 16 * MiB
_BUFFER = 2 * MiB
_WORTH_A_WORKER = 64 * MiB
_MOST_WORKERS = 8
_REQUESTS_EACH = 4
_FEWEST_REQUESTS = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to copy. `requests` and `workers`: None for what suits the image and the machine; sizes in bytes."""

    in_order: bool = True
    sparse_size: int = 4096
    create: bool = True
    requests: int | None = None
    workers: int | None = None
    durable: bool = True


def workers_for(size: int, cores: int, options: Options) -> tuple[int, int]:
    """Worker processes, and buffers in flight in each of them, for an image of `size` bytes.

    More than 8 processes on one host gain nothing on one server, and a small image is copied before a second one has
    started. qemu-img's 8 requests are the least in flight; each process drives four more without effort.
    """
    count = options.workers
    if count is None:
        count = max(1, min(cores, _MOST_WORKERS, size // _WORTH_A_WORKER + 1))
    total = options.requests if options.requests is not None else max(_FEWEST_REQUESTS, _REQUESTS_EACH * count)
    count = min(count, total)
    return count, -(-total // count)


async def convert(
    source_url: str,
    target_url: str,
    options: Options,
    local: LocalWorkers,
    progress: Callable[[int, int], None],
    on_warning: Callable[[str], None],
) -> None:
    """Copy one image. Raises MpconvError; the message says how much was written when it was only a part."""
    try:
        await _copy(source_url, target_url, options, progress, local, trusting=True)
    except StatusWithdrawn as error:
        on_warning(f"{error}: the copy begins anew and reads everything")
        await _copy(source_url, target_url, options, progress, local, trusting=False)


async def _copy(
    source_url: str,
    target_url: str,
    options: Options,
    progress: Callable[[int, int], None],
    local: LocalWorkers,
    *,
    trusting: bool,
) -> None:
    source_store = await transports.connect(source_url, Access.READ)
    target: Transport | None = None
    try:
        source = RawImage(source_store, trusting=trusting)
        target = await _open_target(source_store, target_url, source.size, options.create)
        if target.fixed_size and target.size < source.size:
            raise UsageError(
                f"output file is smaller than input file ({target.size} of {source.size} bytes) in '{target.name}'"
            )
        count, requests = workers_for(source.size, len(os.sched_getaffinity(0)), options)
        job = Job(
            id=1,
            source=source_url,
            targets=[target_url],
            size=source.size,
            in_order=options.in_order,
            sparse_size=options.sparse_size,
            zero_initialised=options.create and target.zero_initialised and options.sparse_size > 0,
            requests=requests,
            durable=options.durable,
            buffer_size=_BUFFER,
            lease_size=_LEASE,
        )
        coordinator = Coordinator(job, source, local, count, progress)
        try:
            if job.size:
                await coordinator.run()
            if options.durable:
                await target.flush()
        except MpconvError as error:
            if coordinator.may_have_written or target.zero_initialised:
                error.why += (
                    f" (the target is incomplete: {human(coordinator.bytes_done)} of {human(source.size)} written;"
                    " run the command again)"
                )
            raise
        progress(source.size, source.size)
    finally:
        await source_store.close()
        if target is not None:
            await target.close()


async def _open_target(source: Transport, url: str, size: int, create: bool) -> Transport:
    """The target, made anew unless `create` is off; refused when it is the source itself."""
    existing: Transport | None = None
    try:
        existing = await transports.connect(url, Access.WRITE)
    except NoSuchImage:
        if not create:
            raise
    if existing is not None:
        if existing.identity == source.identity:
            await existing.close()
            raise UsageError(f"source and target are the same image: '{source.name}'")
        if not create or not existing.creatable:
            return existing
        await existing.close()
    return await transports.connect(url, Access.WRITE, create_size=size)
