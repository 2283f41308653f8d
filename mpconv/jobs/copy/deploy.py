"""One image to several targets: read once, written to each. A target that fails is dropped, and the others go on."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from mpconv import transports
from mpconv.coordination.observer import Observer
from mpconv.coordination.signals import interruptible
from mpconv.coordinator import CHECKPOINT_SECONDS, Coordinator
from mpconv.core.digests import Sums
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy.convert import JOURNAL_SECONDS, SETTLE_SECONDS, without_bytes
from mpconv.jobs.copy.planning import effort_words, give_back, held, plan
from mpconv.jobs.copy.portable import anywhere, for_workers
from mpconv.jobs.copy.target import Target, check_end, check_source
from mpconv.jobs.copy.targets import Outcome, all_different, check, failed, open_all
from mpconv.model.digest import text
from mpconv.model.errors import Fatal, Interrupted, MpconvError, StatusWithdrawn, Unequal
from mpconv.model.place import Place
from mpconv.model.units import human
from mpconv.options.copy import Options
from mpconv.transports.base import REMOVED, Transport
from mpconv.transports.retry import Tell

if TYPE_CHECKING:
    from mpconv.journal.recorder import Recorder

Begin = Callable[[list[Place], Image, dict[int, Target], OpenOptions], Awaitable["Recorder"]]


class Deployment(Struct):
    """What is to be done, and what became of it. `size`: bytes of the source; `digest`: of what was read of it, if that
    was asked for: both once they are known.
    """

    source: Place
    outcomes: list[Outcome]
    size: int | None = None
    digest: str | None = None

    @property
    def left(self) -> list[Outcome]:
        """The targets that have not failed."""
        return [outcome for outcome in self.outcomes if outcome.error is None]

    def left_after(self, failed: Collection[int]) -> bool:
        """Whether a target is left when these have failed too."""
        return any(outcome.error is None and number not in failed for number, outcome in enumerate(self.outcomes))


async def deploy(deployment: Deployment, options: Options, context: JobContext) -> None:
    """Copy the source to all targets; `deployment` says what became of each. Raises MpconvError when all of them are
    left incomplete, or nothing was begun.
    """
    try:
        await deploy_once(deployment, options, context, trusting=True)
    except StatusWithdrawn as error:
        context.observer.warn(f"{error}: the copy begins anew and reads everything")
        await deploy_once(deployment, options, context, trusting=False)


async def deploy_once(
    deployment: Deployment,
    options: Options,
    context: JobContext,
    *,
    trusting: bool,
    begin: Begin | None = None,
) -> None:
    """The same. `trusting`: what the source says of its holes is believed; at StatusWithdrawn all is to be done anew
    without. `begin`: called once everything is open, tells who keeps a journal.
    """
    if options.listening is not None:
        for place in (deployment.source, *(outcome.place for outcome in deployment.outcomes)):
            anywhere(place, options.listening)
    how = context.opening(
        options.retry_for, locked=not options.shared, trusting=trusting and options.hole_map, trust=options.trust
    )
    tell = how.tell
    shared = options.shared or deployment.source.shared
    for outcome in deployment.outcomes:
        outcome.place = transports.settled(outcome.place)
    wanted = msgspec.structs.replace(transports.settled(deployment.source), snapshot=options.snapshot, shared=shared)
    source, sources = await open_and_resolve([wanted], how)
    deployment.size = source.size
    targets: dict[int, Target] = {}
    looked_at: dict[int, Transport] = {}
    recorder: Recorder | None = None
    complete: set[int] = set()
    try:
        empty = without_bytes(source)
        if empty is not None:
            raise empty
        await check(deployment.outcomes, source, options, context.observer, looked_at, begun=not trusting)
        await open_all(deployment.outcomes, source, options, context.observer, tell, targets, looked_at=looked_at)
        await all_different(deployment.outcomes, targets, options)
        await check_source(source, [targets[number].store for number in sorted(targets)], options)
        if targets:
            recorder = await begin(sources, source, targets, how) if begin is not None else None
        if targets:
            await copy(deployment, sources, source, targets, options, context, tell, recorder, complete)
    finally:
        await _discard(deployment.outcomes, targets, complete, context.observer, begun=recorder is not None)
        await source.close()
        for store in looked_at.values():
            await store.close()
        for target in targets.values():
            await target.close()


async def _discard(
    outcomes: Sequence[Outcome],
    targets: Mapping[int, Target],
    complete: Collection[int],
    observer: Observer,
    *,
    begun: bool,
) -> None:
    """Of what this run made and did not complete only that stays which a journal can go on with."""
    for number, target in targets.items():
        error = outcomes[number].error
        if number in complete or (begun and error is None):
            continue
        if not await target.discard() or error is None:
            continue
        if isinstance(error, Unequal):
            observer.warn(f"'{target.store.name}' is not equal to the source{REMOVED}")
        else:
            error.why += f" (the target is incomplete{REMOVED})"


async def copy(
    deployment: Deployment,
    sources: list[Place],
    source: Image,
    targets: dict[int, Target],
    options: Options,
    context: JobContext,
    tell: Tell,
    recorder: Recorder | None = None,
    complete: set[int] | None = None,
) -> None:
    """Copy to the targets, which are open, as far as it is not done yet by what `recorder` knows, and prove it if that
    was asked for. `complete`: the numbers of those that are written, unless they are found not to be equal.
    """
    complete = set() if complete is None else complete
    opened = [targets[number] for number in sorted(targets)]
    job, count = plan(sources, source, opened, options)
    context.observer.said(effort_words(job, count, source, opened))
    outcomes = deployment.outcomes
    places = dict(zip(sorted(targets), job.targets, strict=True))
    job = msgspec.structs.replace(
        job,
        targets=[
            places.get(number, for_workers(outcome.place, options.listening)) for number, outcome in enumerate(outcomes)
        ],
        reads_zeros=[n in targets and targets[n].zero_initialised for n in range(len(outcomes))],
        dropped=[n for n in range(len(outcomes)) if n not in targets],
    )
    settling = not all(transports.is_local(place.url) for place in job.targets)
    coordinator = Coordinator(
        job,
        source,
        context.workers,
        count,
        context.observer,
        tell=tell,
        rate=options.rate,
        block=math.lcm(*(target.block for target in targets.values())),
        settle_seconds=SETTLE_SECONDS if settling else 0,
        checkpoint_seconds=CHECKPOINT_SECONDS if recorder is None else JOURNAL_SECONDS,
        recorder=recorder,
        listening=options.listening,
        holds=held(sources, source, opened),
        keeping=options.verify_source,
    )
    with contextlib.suppress(_NoneLeft):
        async with recorder or contextlib.nullcontext():
            try:
                context.observer.progress(coordinator.bytes_done, source.size, coordinator.bytes_zero)
                if coordinator.bytes_done < source.size:
                    await coordinator.run()
                if recorder is not None:
                    await recorder.settle()
            except StatusWithdrawn:
                raise
            except MpconvError as error:
                if deployment.left_after(coordinator.failed):
                    written = f"{human(coordinator.bytes_done)} of {human(source.size)} written"
                    again = f"resume with: {recorder.resume_with}" if recorder is not None else "run the command again"
                    gone = [await target.discard() for target in targets.values()] if recorder is None else []
                    removed = ", so those that this run made were removed" if any(gone) else ""
                    error.why += f" (the targets are incomplete{removed}: {written}; {again})"
                    raise
            finally:
                for number, why in coordinator.failed.items():
                    outcomes[number].error = why
            if options.cache.flushes:
                context.observer.phase("flush")
                await interruptible(_finish(deployment, targets, context.observer))
            await check_end(source, options, context.observer.warn)
            complete.update(number for number, outcome in enumerate(outcomes) if outcome.error is None)
            if (options.verify is not None or options.verify_source) and coordinator.let_go:
                await give_back(source.stores, [store for target in opened for store in target.stores])
            if options.verify is not None:
                for number, outcome in enumerate(outcomes):
                    if outcome.error is None:
                        where = outcome.place.resolved("raw", targets[number].store.marks)
                        await _verify(number, where, outcome, source.size, coordinator.digests, options, context)
                        if isinstance(outcome.error, Unequal):
                            complete.discard(number)
            if not deployment.left:
                raise _NoneLeft("no target is left")
            if options.verify_source:
                from mpconv.jobs.verify_source import verify_source  # noqa: PLC0415  (few need it)

                try:
                    await verify_source(sources, source, coordinator, options, context)
                except Unequal:
                    complete.clear()
                    raise
    if options.digest:
        deployment.digest = text(source.size, coordinator.digests.total)


class _NoneLeft(Fatal):
    """Every target has failed, each for a reason of its own."""


async def _finish(deployment: Deployment, targets: dict[int, Target], observer: Observer) -> None:
    async def finish(number: int, outcome: Outcome) -> None:
        try:
            await targets[number].finish(durable=True)
        except MpconvError as error:
            failed(number, outcome, error, observer)

    outcomes = enumerate(deployment.outcomes)
    await asyncio.gather(*(finish(number, outcome) for number, outcome in outcomes if outcome.error is None))


async def _verify(
    number: int,
    where: Place,
    outcome: Outcome,
    size: int,
    sums: Sums,
    options: Options,
    context: JobContext,
) -> None:
    from mpconv.jobs.verify import verify  # noqa: PLC0415  (few need it)

    assert options.verify is not None
    try:
        outcome.verified = await verify(where, size, sums, options.verify, options, context)
    except Interrupted:
        raise
    except MpconvError as error:
        failed(number, outcome, error, context.observer)
