"""One image to several targets: read once, written to each. A target that fails is dropped, and the others go on."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from mpconv import transports
from mpconv.convert import SETTLE_SECONDS, plan
from mpconv.coordinator import Coordinator
from mpconv.core.digests import Sums
from mpconv.digest import text
from mpconv.errors import Interrupted, MpconvError, NoSuchImage, StatusWithdrawn, UsageError
from mpconv.formats.image import Image
from mpconv.formats.opening import How, open_and_resolve
from mpconv.interruption import interruptible
from mpconv.job import Place
from mpconv.observer import Observer
from mpconv.options import Options
from mpconv.target import Target, check_other, open_raw, too_small
from mpconv.transports.base import Access, Transport
from mpconv.transports.retrying import Retry, Sparingly, Tell
from mpconv.units import human
from mpconv.workers.launch.local import LocalWorkers


@dataclass(slots=True)
class Outcome:
    """What became of one target. `verified`: bytes that were read back and are the source's."""

    place: Place
    error: MpconvError | None = None
    verified: int = 0

    @property
    def name(self) -> str:
        """Without credentials."""
        return transports.redacted(self.place.url)


@dataclass(slots=True)
class Deployment:
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


async def deploy(deployment: Deployment, options: Options, local: LocalWorkers, observer: Observer) -> None:
    """Copy the source to all targets; `deployment` says what became of each. Raises MpconvError when all of them are
    left incomplete, or nothing was begun.
    """
    try:
        await _deploy(deployment, options, local, observer, trusting=True)
    except StatusWithdrawn as error:
        observer.warn(f"{error}: the copy begins anew and reads everything")
        await _deploy(deployment, options, local, observer, trusting=False)


async def _deploy(
    deployment: Deployment, options: Options, local: LocalWorkers, observer: Observer, *, trusting: bool
) -> None:
    tell = Sparingly(observer.warn)
    how = How(
        locked=not options.shared,
        trusting=trusting,
        trust=options.trust,
        retry=Retry(options.retry_for),
        tell=tell,
    )
    shared = options.shared or deployment.source.shared
    wanted = msgspec.structs.replace(deployment.source, snapshot=options.snapshot, shared=shared)
    source, sources = await open_and_resolve([wanted], how)
    deployment.size = source.size
    targets: dict[int, Target] = {}
    try:
        await _check(deployment.outcomes, source, options)
        await _open(deployment, source, options, observer, tell, targets)
        if targets:
            await _copy(deployment, sources, source, targets, options, local, observer, tell)
    finally:
        await source.close()
        for target in targets.values():
            await target.close()


async def _check(outcomes: Sequence[Outcome], source: Image, options: Options) -> None:
    """Before anything is made or written. UsageError for a target that cannot be meant."""
    if options.verify is not None:
        for outcome in outcomes:
            if outcome.place.url.startswith("null:"):
                raise UsageError(f"--verify: '{outcome.place.url}' keeps nothing that could be read back")
    left = [outcome for outcome in outcomes if outcome.error is None]
    looks = await asyncio.gather(*(_look(outcome, source, options) for outcome in left), return_exceptions=True)
    seen: set[tuple[object, ...]] = set()
    for outcome, found in zip(left, looks, strict=True):
        if isinstance(found, BaseException):
            raise found
        if found & seen:
            raise _twice(outcome)
        seen |= found


def _twice(outcome: Outcome) -> UsageError:
    return UsageError(f"'{outcome.name}' is named twice among the targets")


async def _look(outcome: Outcome, source: Image, options: Options) -> set[tuple[object, ...]]:
    """By what one knows a target that is named twice. UsageError when it is the source, or too small."""
    place = outcome.place
    local = transports.is_local(place.url)
    named: tuple[object, ...] = ("name", os.path.realpath(place.url.removeprefix("file:")) if local else place.url)
    try:
        store = await transports.open_place(place, Access.WRITE)
    except NoSuchImage as error:
        if not options.create:
            outcome.error = error
        return {named}
    except MpconvError as error:
        if not (options.create and local):  # of a file the attempt to make it tells what is wrong
            outcome.error = error
        return {named}
    try:
        check_other(source, store)
        stays = not (options.create and store.creatable)
        if stays and store.fixed_size and store.writable < source.size:
            raise too_small(store, store.size, source)
        return {store.identity} if place.url.startswith("null:") else {named, store.identity}
    finally:
        await store.close()


async def _open(
    deployment: Deployment, source: Image, options: Options, observer: Observer, tell: Tell, targets: dict[int, Target]
) -> None:
    """Into `targets`, by the number among the outcomes. One that cannot be had is dropped."""

    async def open_one(number: int, outcome: Outcome) -> None:
        try:
            targets[number] = await open_raw(source, outcome.place, options, tell)
        except MpconvError as error:
            outcome.error = error

    outcomes = deployment.outcomes
    await asyncio.gather(*(open_one(n, outcome) for n, outcome in enumerate(outcomes) if outcome.error is None))
    identities: set[tuple[object, ...]] = set()
    for number in sorted(targets):
        store: Transport = targets[number].store
        if store.identity in identities:  # links to one file that was not there yet
            raise _twice(outcomes[number])
        identities.add(store.identity)
    for outcome in outcomes:
        if outcome.error is not None:
            observer.dropped(outcome.name, str(outcome.error))


async def _copy(
    deployment: Deployment,
    sources: list[Place],
    source: Image,
    targets: dict[int, Target],
    options: Options,
    local: LocalWorkers,
    observer: Observer,
    tell: Tell,
) -> None:
    numbers = sorted(targets)
    job, count = plan(sources, source, [targets[number] for number in numbers], options)
    settling = not all(transports.is_local(place.url) for place in job.targets)
    coordinator = Coordinator(
        job,
        source,
        local,
        count,
        observer,
        tell=tell,
        rate=options.rate,
        block=math.lcm(*(target.block for target in targets.values())),
        settle_seconds=SETTLE_SECONDS if settling else 0,
    )
    try:
        observer.progress(0, source.size, 0)
        if source.size:
            await coordinator.run()
    except StatusWithdrawn:
        raise
    except MpconvError as error:
        if len(coordinator.failed) < len(numbers):
            written = f"{human(coordinator.bytes_done)} of {human(source.size)} written"
            error.why += f" (the targets are incomplete: {written}; run the command again)"
            raise
    finally:
        for failed, why in coordinator.failed.items():
            deployment.outcomes[numbers[failed]].error = why
    if options.cache.flushes:
        observer.phase("flush")
        await interruptible(_finish(deployment, targets, observer))
    sums = coordinator.digests
    if options.verify is not None:
        for outcome in deployment.left:
            await _verify(outcome, source.size, sums, options, local, observer)
    if options.digest:
        deployment.digest = text(source.size, sums.total)


async def _finish(deployment: Deployment, targets: dict[int, Target], observer: Observer) -> None:
    async def finish(outcome: Outcome, target: Target) -> None:
        try:
            await target.finish(durable=True)
        except MpconvError as error:
            _failed(outcome, error, observer)

    await asyncio.gather(
        *(finish(outcome, targets[n]) for n, outcome in enumerate(deployment.outcomes) if outcome.error is None)
    )


async def _verify(
    outcome: Outcome, size: int, sums: Sums, options: Options, local: LocalWorkers, observer: Observer
) -> None:
    from mpconv.verify import verify  # noqa: PLC0415  (few need it)

    assert options.verify is not None
    where = msgspec.structs.replace(outcome.place, format="raw")
    try:
        outcome.verified = await verify(where, size, sums, options.verify, options, local, observer)
    except Interrupted:
        raise
    except MpconvError as error:
        _failed(outcome, error, observer)


def _failed(outcome: Outcome, error: MpconvError, observer: Observer) -> None:
    outcome.error = error
    observer.dropped(outcome.name, str(error))
