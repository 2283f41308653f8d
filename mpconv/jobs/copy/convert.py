"""One image from source to target: both opened, workers chosen, the coordinator run, the target finished."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from mpconv import transports
from mpconv.coordination.signals import interruptible
from mpconv.coordinator import CHECKPOINT_SECONDS, Coordinator
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve, probed
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy.planning import effort_words, give_back, held, plan
from mpconv.jobs.copy.portable import anywhere
from mpconv.jobs.copy.target import Left, Target, check_end, check_source, open_raw
from mpconv.model.errors import ImageError, MpconvError, StatusWithdrawn, Unequal, UsageError
from mpconv.model.place import Place
from mpconv.model.units import human
from mpconv.options.copy import Options
from mpconv.transports.base import REMOVED, Transport
from mpconv.transports.retry import Tell

if TYPE_CHECKING:
    from mpconv.journal.recorder import Recorder

Begin = Callable[[list[Place], Image, Target, OpenOptions], Awaitable["Recorder"]]

SETTLE_SECONDS = 2.0
"""A server takes what lies in its socket within moments, once its client is gone; what it takes then are the same bytes
that others have written there meanwhile, but the target must be nobody else's yet.
"""
JOURNAL_SECONDS = 2.0
"""With a journal: so much, and what a flush takes, is done again after a crash."""


async def convert(
    sources: list[Place],
    target: Place,
    options: Options,
    context: JobContext,
    *,
    again: bool = False,
) -> None:
    """Copy one image, or several one after the other. Raises MpconvError; the message says how much was written when
    it was only a part. `again`: another attempt may have written a part of it.
    """
    try:
        await copy_once(sources, target, options, context, trusting=True, again=again)
    except StatusWithdrawn as error:
        context.observer.warn(f"{error}: the copy begins anew and reads everything")
        await copy_once(sources, target, options, context, trusting=False)


async def copy_once(
    sources: list[Place],
    place: Place,
    options: Options,
    context: JobContext,
    *,
    trusting: bool,
    again: bool = False,
    begin: Begin | None = None,
) -> None:
    """The same. `trusting`: what the sources say of their holes is believed; at StatusWithdrawn all is to be done anew
    without. `begin`: called once both are open, tells who keeps a journal.
    """
    if options.listening is not None:
        for one in (*sources, place):
            anywhere(one, options.listening)
    backed = options.qcow2 is not None and options.qcow2.backing_file is not None
    how = context.opening(
        options.retry_for,
        locked=not options.shared,
        trusting=trusting and options.hole_map,
        trust=options.trust,
        keeps_backing=backed,
    )
    tell = how.tell
    several = options.snapshot is not None and len(sources) > 1 and not options.snapshot.startswith("snapshot.")
    snapshot = None if several else options.snapshot
    sources, place, options = settled(sources, place, options)
    wanted = [msgspec.structs.replace(sources[0], snapshot=snapshot), *sources[1:]]
    if options.shared:
        wanted = [msgspec.structs.replace(place, shared=True) for place in wanted]
    source, sources = await open_and_resolve(wanted, how)
    target: Target | None = None
    try:
        if several:
            raise UsageError("No support for concatenating multiple snapshot")
        if options.refusal is not None:
            raise UsageError(options.refusal)
        empty = without_bytes(source)
        if empty is not None:
            if options.refuse_empty or options.verify is not None:
                raise empty
            context.observer.warn(str(empty))
        if options.verify is not None:
            from mpconv.jobs.verify import check_readable  # noqa: PLC0415  (few need it)

            place = await check_readable(place, options)
        if options.probe_target:
            place = await probed(place, tell)
        if begin is not None and not options.create and _format_of(place, options) == "qcow2":
            raise UsageError("--journal cannot be used with -n and a qcow2 image yet: leave out one of the two")
        target = await open_target(source, place, options, tell, begun=again or not trusting)
        try:
            await check_source(source, target.stores, options)
        except BaseException:
            await target.discard()
            raise
        if options.probe_target and target.writer is None:
            context.observer.warn(f"Image format was not specified for '{target.store.name}' and probing guessed raw")
        recorder = await _begun(begin, sources, source, target, how)
        await run(sources, source, place, target, options, context, tell, recorder)
    finally:
        await source.close()
        if target is not None:
            await target.close()


def without_bytes(source: Image) -> ImageError | None:
    """What is wrong with a source, or with one of several, that has nothing to copy."""
    for store in source.stores:
        if not store.size and store.fixed_size:
            return _empty(store, "0 bytes")
    return None if source.size or not source.stores[0].fixed_size else _empty(source.stores[0], "a disk of 0 bytes")


def _empty(store: Transport, what: str) -> ImageError:
    why = f"the source '{store.name}' is empty ({what}): see whether what wrote it has failed"
    return ImageError(why, image=store.name)


async def _begun(
    begin: Begin | None, sources: list[Place], source: Image, target: Target, how: OpenOptions
) -> Recorder | None:
    if begin is None:
        return None
    try:
        return await begin(sources, source, target, how)
    except BaseException:
        await target.discard()
        raise


def settled(sources: Sequence[Place], place: Place, options: Options) -> tuple[list[Place], Place, Options]:
    """The same by names that mean the same in every process, and later: those that a new image keeps, too."""
    sources, place = [transports.settled(one) for one in sources], transports.settled(place)
    made = options.qcow2
    if made is None or (made.backing_file is None and made.data_file is None):
        return sources, place, options
    from mpconv.formats.trust import combined  # noqa: PLC0415  (few need it)

    def named(name: str | None) -> str | None:
        if name is None:
            return None
        known = Place(url=combined(place.url, name))
        found = transports.settled(known)
        return name if found is known else found.url.removeprefix("file:")

    names = {"backing_file": named(made.backing_file), "data_file": named(made.data_file)}
    return sources, place, structs.replace(options, qcow2=structs.replace(made, **names))


def _format_of(place: Place, options: Options) -> str | None:
    """A place that is to be probed was so already."""
    return place.format if options.probe_target else options.target_format


async def open_target(
    source: Image, place: Place, options: Options, tell: Tell, left: Left | None = None, *, begun: bool = False
) -> Target:
    """The target, made anew unless it exists by the user's word, or is `left` by an earlier run. `begun`: another
    attempt came before, as with check_apart.
    """
    if _format_of(place, options) != "qcow2":
        if options.compress:
            raise UsageError("Compression not supported for this file format")
        return await open_raw(source, place, options, tell, left, begun=begun)
    from mpconv.jobs.copy import qcow2_target  # noqa: PLC0415  (raw copies start sooner without)

    if options.create and options.qcow2 is not None:
        return await qcow2_target.make(source, place, options, options.qcow2, tell, left, begun=begun)
    return await qcow2_target.existing(source, place, options, tell, begun=begun)


async def run(
    sources: list[Place],
    source: Image,
    place: Place,
    target: Target,
    options: Options,
    context: JobContext,
    tell: Tell,
    recorder: Recorder | None = None,
) -> None:
    """Copy from the source to the target at `place`, which are open, as far as it is not done yet by what `recorder`
    knows; then prove it, if that was asked for. What cannot be gone on with and is not complete, or not the source's
    equal, is removed if this run made it.
    """
    async with recorder or contextlib.nullcontext():
        try:
            copied = await _written(sources, source, target, options, context, tell, recorder)
        except BaseException:
            if recorder is None:
                await target.discard()
            raise
        if options.digests:
            from mpconv.jobs.verify import prove  # noqa: PLC0415  (few need it)

            try:
                await prove(source.size, copied.digests, place, target, options, context)
                if options.verify_source:
                    from mpconv.jobs.verify_source import verify_source  # noqa: PLC0415  (fewer still)

                    await verify_source(sources, source, copied, options, context)
            except Unequal:
                if recorder is None and await target.discard():
                    context.observer.warn(f"'{target.store.name}' is not equal to the source{REMOVED}")
                raise


async def _written(
    sources: list[Place],
    source: Image,
    target: Target,
    options: Options,
    context: JobContext,
    tell: Tell,
    recorder: Recorder | None,
) -> Coordinator:
    """Who copied, and knows what was read, once the target is complete."""
    job, count = plan(sources, source, [target], options)
    context.observer.said(effort_words(job, count, source, [target]))
    layout = target.writer.layout if target.writer is not None else None
    coordinator = Coordinator(
        job,
        source,
        context.workers,
        count,
        context.observer,
        tell=tell,
        rate=options.rate,
        block=target.block,
        settle_seconds=0 if transports.is_local(target.place.url) else SETTLE_SECONDS,
        layout=layout,
        checkpoint_seconds=CHECKPOINT_SECONDS if recorder is None else JOURNAL_SECONDS,
        recorder=recorder,
        listening=options.listening,
        holds=held(sources, source, [target]),
        keeping=options.verify_source,
    )
    try:
        context.observer.progress(coordinator.bytes_done, source.size, coordinator.bytes_zero)
        if coordinator.bytes_done < job.size:
            await coordinator.run()
        if recorder is not None:
            await recorder.settle()
        if options.cache.flushes:
            context.observer.phase("flush")
        if not target.whole:
            await interruptible(target.finish(durable=options.cache.flushes))
        await check_end(source, options, context.observer.warn)
    except StatusWithdrawn:
        raise
    except MpconvError as error:
        if recorder is not None or coordinator.may_have_written or target.store.zero_initialised:
            written = f"{human(coordinator.bytes_done)} of {human(source.size)} written"
            again = f"resume with: {recorder.resume_with}" if recorder is not None else "run the command again"
            removed = REMOVED if recorder is None and await target.discard() else ""
            error.why += f" (the target is incomplete{removed}: {written}; {again})"
        raise
    if options.digests and coordinator.let_go:
        await give_back(source.stores, target.stores)
    return coordinator
