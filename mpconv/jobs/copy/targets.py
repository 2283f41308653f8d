"""The targets of a deployment: each looked at before anything is made, then opened, and told apart from the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct

from mpconv import transports
from mpconv.coordination.observer import Observer
from mpconv.formats.base import Image
from mpconv.jobs.copy.target import Left, Target, check_apart, open_raw, too_small
from mpconv.model.errors import MpconvError, NoSuchImage, UsageError
from mpconv.model.place import Place
from mpconv.options.copy import Options
from mpconv.transports.base import Access, Transport
from mpconv.transports.file.beneath import realpath
from mpconv.transports.identity import ALLOW, Facts, Verdict, alike_at_most, suspects
from mpconv.transports.retry import Retry, Tell
from mpconv.transports.sameness import verdict_of


class Outcome(Struct, eq=False):
    """What became of one target. `verified`: bytes that were read back and are the source's."""

    place: Place
    error: MpconvError | None = None
    verified: int = 0

    @property
    def name(self) -> str:
        """Without credentials."""
        return transports.redacted(self.place.url)


def failed(number: int, outcome: Outcome, error: MpconvError, observer: Observer) -> None:
    """The target is dropped."""
    outcome.error = error
    observer.dropped(number, outcome.name, str(error))


async def check(
    outcomes: Sequence[Outcome],
    source: Image,
    options: Options,
    observer: Observer,
    looked_at: dict[int, Transport],
    *,
    begun: bool,
) -> None:
    """Before anything is made or written. UsageError for a target that cannot be meant; one that is not to be had is
    dropped. `looked_at`: into it those that can stay open until they are written to, by number: to log in to a LUN
    takes longer than all else that is done for it. `begun`: as check_apart's.
    """
    if options.verify is not None:
        for outcome in outcomes:
            if outcome.place.url.startswith("null:"):
                raise UsageError(
                    f"--verify: '{outcome.place.url}' keeps nothing that could be read back: leave out --verify"
                )
    left = [number for number, outcome in enumerate(outcomes) if outcome.error is None]
    looks = await asyncio.gather(
        *(_look(number, outcomes[number], source, options, looked_at, begun=begun) for number in left),
        return_exceptions=True,
    )
    seen: set[str] = set()
    known: dict[int, Facts] = {}
    for number, found in zip(left, looks, strict=True):
        if isinstance(found, BaseException):
            raise found
        name, facts = found
        if name in seen:
            raise _twice(outcomes[number], outcomes[number])
        if not outcomes[number].place.url.startswith("null:"):
            seen.add(name)
            known |= {} if facts is None else {number: facts}
    numbers = list(known)
    for one, other in suspects([known[number] for number in numbers]):
        if alike_at_most(known[numbers[one]], known[numbers[other]]):
            continue
        await _check_pair(numbers[one], numbers[other], outcomes, options, looked_at, begun=begun)
    for number in left:
        error = outcomes[number].error
        if error is not None:
            observer.dropped(number, outcomes[number].name, str(error))


def _twice(outcome: Outcome, other: Outcome) -> UsageError:
    if outcome.name == other.name:
        return UsageError(f"'{outcome.name}' is named twice among the targets: name it once")
    return UsageError(f"'{outcome.name}' and '{other.name}' are the same image: name it once among the targets")


def _check_verdict(verdict: Verdict, outcome: Outcome, other: Outcome, options: Options) -> None:
    if verdict is Verdict.CERTAIN:
        raise _twice(outcome, other)
    if verdict is Verdict.PROBABLE and not options.allow_same_image:
        names = f"'{outcome.name}' and '{other.name}'"
        why = f"name it once among the targets, or give {ALLOW} if you know that they are two"
        raise UsageError(f"{names} are probably the same image: {why}")


async def _check_pair(
    one: int,
    other: int,
    outcomes: Sequence[Outcome],
    options: Options,
    looked_at: Mapping[int, Transport],
    *,
    begun: bool,
) -> None:
    """UsageError when two targets that are there are one."""
    async with contextlib.AsyncExitStack() as stack:
        stores = []
        for number in (one, other):
            store = looked_at.get(number)
            if store is None:
                store = await transports.open_place(outcomes[number].place, Access.READ)
                stack.push_async_callback(store.close)
            stores.append(store)
        verdict = await verdict_of(stores[0], stores[1], begun=begun or options.allow_same_image)
    _check_verdict(verdict, outcomes[one], outcomes[other], options)


async def _look(
    number: int,
    outcome: Outcome,
    source: Image,
    options: Options,
    looked_at: dict[int, Transport],
    *,
    begun: bool,
) -> tuple[str, Facts | None]:
    """By what one knows a target that is named twice: its name, and what it is when it is there. UsageError when it is
    the source, or too small.
    """
    place = outcome.place
    local = transports.is_local(place.url)
    named = realpath(place.url.removeprefix("file:")) if local else place.url
    try:
        store = await transports.open_place(place, Access.WRITE, retry=Retry(options.retry_for))
    except NoSuchImage as error:
        if not options.create:
            outcome.error = error
        return named, None
    except MpconvError as error:
        if not (options.create and local):  # of a file the attempt to make it tells what is wrong
            outcome.error = error
        return named, None
    stays = not store.creatable and not local
    if stays:
        looked_at[number] = store
    try:
        await check_apart(source, store, options, begun=begun)
        if not (options.create and store.creatable) and store.fixed_size and store.writable < source.size:
            raise too_small(store, store.size, source)
        return named, await store.known_by()
    finally:
        if not stays:
            await store.close()


async def open_all(
    outcomes: Sequence[Outcome],
    source: Image,
    options: Options,
    observer: Observer,
    tell: Tell,
    targets: dict[int, Target],
    left: Mapping[int, Left] = MappingProxyType({}),
    *,
    looked_at: dict[int, Transport] | None = None,
) -> None:
    """Into `targets`, by number, those that have not failed. One that cannot be had is dropped. `left`: as an earlier
    run left them. `looked_at`: those that are open already; they are taken out of it.
    """
    looked_at = {} if looked_at is None else looked_at

    async def open_one(number: int, outcome: Outcome) -> None:
        found = looked_at.pop(number, None)
        try:
            targets[number] = await open_raw(
                source, outcome.place, options, tell, left.get(number), begun=True, found=found
            )
        except MpconvError as error:
            failed(number, outcome, error, observer)

    await asyncio.gather(*(open_one(n, outcome) for n, outcome in enumerate(outcomes) if outcome.error is None))


async def all_different(outcomes: Sequence[Outcome], targets: dict[int, Target], options: Options) -> None:
    """UsageError for two names of one file that was not there yet."""
    numbers = sorted(targets)
    known = await asyncio.gather(*(targets[number].store.known_by() for number in numbers))
    for one, other in suspects(known):
        if known[one].disk is not None and alike_at_most(known[one], known[other]):
            continue
        first, second = numbers[one], numbers[other]
        verdict = await verdict_of(targets[first].store, targets[second].store, begun=True)
        _check_verdict(verdict, outcomes[second], outcomes[first], options)
