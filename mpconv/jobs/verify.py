"""A target read back after a copy, and compared with the digests that were taken of the source as it was read."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from mpconv import transports
from mpconv.core.digests import Sums
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve, open_source
from mpconv.formats.trust import with_data_file
from mpconv.jobs.checksum import read_sums
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy.target import Target
from mpconv.jobs.excerpt import Excerpt
from mpconv.model.digest import REGION, regions, text
from mpconv.model.errors import Fatal, MpconvError, StatusWithdrawn, Unequal, UsageError
from mpconv.model.place import Place, Trust
from mpconv.options.copy import Options
from mpconv.transports.retry import AT_ONCE, keep_trying

EVERYTHING = 1.0
_MOST_NAMED = 16
_FEWEST_ZEROS = 64
"""Regions of zeros that a sample has where there is hardly any data."""


async def check_readable(place: Place, options: Options) -> Place:
    """UsageError, or another, when the target could not be read back: better now than when all is written. The place,
    with what lies there.
    """
    if place.url.startswith("null:"):
        raise UsageError(f"--verify: '{place.url}' keeps nothing that could be read back: leave out --verify")
    if not options.create:
        where = msgspec.structs.replace(place, format=None if options.probe_target else options.target_format)
        image = await open_source([where], OpenOptions(trust=_trust(place, options)))
        await image.close()
        return place.marked(image.stores[0].marks)
    return place


def _trust(place: Place, options: Options) -> Trust:
    """What the target may open besides itself, to be read back: the data file that was just made at least."""
    made = options.qcow2.data_file if options.create and options.qcow2 is not None else None
    return options.trust if made is None else with_data_file(options.trust, place.url, made)


async def prove(size: int, sums: Sums, place: Place, target: Target, options: Options, context: JobContext) -> None:
    """Everything is written: now what was asked for to believe it. `sums`: of the `size` bytes that were read."""
    if options.verify is not None:
        where = place.resolved("raw" if target.writer is None else "qcow2", target.store.marks)
        await verify(where, size, sums, options.verify, options, context)
    if options.digest:
        context.observer.digest(text(size, sums.total), transports.redacted(place.url))


async def verify(
    place: Place,
    size: int,
    source: Sums,
    share: float,
    options: Options,
    context: JobContext,
) -> int:
    """Compare the first `size` bytes of the image at `place` with `source`, or a `share` of them, chosen at random; how
    many were compared.

    Fatal, with the ranges that differ, when they are not equal.
    """
    context.observer.phase("verify")
    chosen = sample(source, size, share, random.SystemRandom()) if share < EVERYTHING else None
    wanted = [(0, size)] if chosen is None else joined(chosen, size)
    try:
        found = await _read_back(place, size, wanted, options, context)
    except MpconvError as error:
        error.why += " (everything is written, but it is not verified)"
        raise
    wrong = unequal(source, found, chosen)
    if wrong:
        raise Unequal(_told(joined(wrong, size), transports.redacted(place.url)))
    compared = sum(end - start for start, end in wanted)
    context.observer.verified(compared, size)
    return compared


async def _read_back(
    place: Place,
    size: int,
    wanted: list[tuple[int, int]],
    options: Options,
    context: JobContext,
) -> Sums:
    how = context.opening(options.retry_for, trust=_trust(place, options))
    try:
        return await _read(place, how, size, wanted, options, context)
    except StatusWithdrawn as error:
        context.observer.warn(f"{error}: everything is read back")
        return await _read(place, replace(how, trusting=False), size, wanted, options, context)


async def _read(
    place: Place,
    how: OpenOptions,
    size: int,
    wanted: list[tuple[int, int]],
    options: Options,
    context: JobContext,
) -> Sums:
    # The server was there a moment ago: one that is not may come back.
    image, places = await keep_trying(lambda: _open(place, how), how.retry or AT_ONCE, how.tell)
    try:
        if image.size < size:
            why = f"has only {image.size} of {size} bytes when read back: do not use it, copy again"
            raise Unequal(f"'{transports.redacted(place.url)}' {why}")
        return await read_sums(image, Excerpt(image, size, wanted), places, options, how, context)
    finally:
        await image.close()


async def _open(place: Place, how: OpenOptions) -> tuple[Image, list[Place]]:
    """A local file past the page cache, where its file system can do that: what is compared is what was stored."""
    if transports.is_local(place.url) and not place.direct:
        try:
            return await open_and_resolve([msgspec.structs.replace(place, direct=True)], how)
        except Fatal:
            return await open_and_resolve([place], how)
    return await open_and_resolve([place], how)


def sample(sums: Sums, size: int, share: float, chance: random.Random) -> list[int]:
    """Regions chosen at random, ascending: that share of those with data, and of the others the same share, but not
    more than of those with data, or 64. At least one.

    Zeros are where old data may shine through, so they are looked at too; but they must not be all that is looked at.
    """
    with_data = list(sums.regions())
    zeros = len(regions(0, size)) - len(with_data)
    chosen = chance.sample(with_data, math.ceil(share * len(with_data)))
    # The n-th region without data, from 0, comes after as many with data as have at most n others below them.
    others_below = [region - index for index, region in enumerate(with_data)]
    some = min(math.ceil(share * zeros), max(_FEWEST_ZEROS, len(chosen)))
    chosen += [number + bisect_right(others_below, number) for number in chance.sample(range(zeros), some)]
    return sorted(chosen)


def unequal(first: Sums, second: Sums, chosen: Iterable[int] | None = None) -> list[int]:
    """The regions among those chosen, or among all, whose sums differ; ascending."""
    looked_at = sorted({*first.regions(), *second.regions()}) if chosen is None else chosen
    return [region for region in looked_at if first[region] != second[region]]


def joined(numbers: Iterable[int], size: int) -> list[tuple[int, int]]:
    """The ranges of bytes (start, end) of these regions, ascending, of a disk of `size` bytes; neighbours in one."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        start, end = number * REGION, min((number + 1) * REGION, size)
        if found and found[-1][1] == start:
            start, _ = found.pop()
        found.append((start, end))
    return found


def _told(wrong: list[tuple[int, int]], name: str) -> str:
    named = ", ".join(f"{start} to {end - 1}" for start, end in wrong[:_MOST_NAMED])
    more = f" and {len(wrong) - _MOST_NAMED} more ranges" if len(wrong) > _MOST_NAMED else ""
    return f"the target is not equal to the source: bytes {named}{more} in '{name}': do not use it, copy again"
