"""Whether two open stores are one under two names, and whether a store is still as it was: asked of the stores."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from mpconv.model.errors import MpconvError, UsageError
from mpconv.model.extent import Extent, Kind
from mpconv.transports.base import Transport
from mpconv.transports.file.layers import is_served_twice, is_used
from mpconv.transports.identity import ALLOW, Facts, Verdict, holds, judge, suspects

_SAMPLE = 4096
_ANYWHERE, _IN_DATA = 512, 256
"""Places that are compared: an eighth of a percent of data in a disk is met by the first ones in half of all cases, and
wherever one of the two tells its data's places, by the others.
"""
_AT_A_TIME = 32
_MAP_CALLS = 16


async def verdict_of(one: Transport, other: Transport, *, begun: bool = False, harmless: bool = False) -> Verdict:
    """CERTAIN, PROBABLE or DIFFERENT. `begun`: that contents are the same is no evidence, since the one was copied to
    the other, or since somebody knows better. `harmless`: each byte would be written where it is read, so that contents
    may be the same because it was done before; without, that alone is suspicious in two disks of one server.
    """
    facts, others = await asyncio.gather(one.known_by(), other.known_by())
    if not suspects([facts, others]):
        return Verdict.DIFFERENT
    return await _closely(one, other, begun=begun, harmless=harmless)


async def _closely(one: Transport, other: Transport, *, begun: bool, harmless: bool) -> Verdict:
    facts = await one.known_by()
    others = await other.known_by()
    found = judge(facts, others, await one.known_by())
    if found in (Verdict.CERTAIN, Verdict.PROBABLE, Verdict.DIFFERENT):
        return found
    if begun or not await _may_be(found, facts, others, harmless=harmless):
        return Verdict.DIFFERENT
    differ, data = await _compared(one.whole, other.whole)
    needs_data = found is Verdict.IF_DATA_IS_THE_SAME or (found is Verdict.IF_ONE_FILE_IS_BEHIND and not harmless)
    return Verdict.DIFFERENT if differ or (needs_data and not data) else Verdict.PROBABLE


async def _may_be(found: Verdict, one: Facts, other: Facts, *, harmless: bool) -> bool:
    """What else is known where the contents alone would be too little, or cost too much for nothing."""
    if found is Verdict.IF_SERVED_HERE:
        key = one.key if one.local else other.key
        return await asyncio.to_thread(is_used, key)
    if found is Verdict.IF_ONE_FILE_IS_BEHIND and harmless:
        disk = one.disk
        return disk is not None and disk.here and await asyncio.to_thread(is_served_twice, disk.size)
    return True


async def _compared(one: Transport, other: Transport) -> tuple[bool, bool]:
    """Whether they differ anywhere, and whether there is anything but zeros, as far as samples tell."""
    size = min(one.size, other.size)
    places = [0, max(0, size - _SAMPLE)]
    for extents in await asyncio.gather(_data_of(one, size), _data_of(other, size)):
        if extents:
            lengths = [extent.length for extent in extents]
            chosen = random.choices(extents, lengths, k=_IN_DATA // 2) + random.choices(extents, k=_IN_DATA // 2)
            places += [random.randrange(extent.start, extent.end) for extent in chosen]
    places += [random.randrange(size) for _ in range(_ANYWHERE if size else 0)]
    data = False
    places = sorted({at - at % _SAMPLE for at in places})
    for begin in range(0, len(places), _AT_A_TIME):
        group = places[begin : begin + _AT_A_TIME]
        found = await asyncio.gather(*(_sample(one, other, at, size) for at in group))
        if any(differs for differs, _ in found):
            return True, data
        data = data or any(has_data for _, has_data in found)
    return False, data


async def _sample(one: Transport, other: Transport, at: int, size: int) -> tuple[bool, bool]:
    """The same of one place. What cannot be read tells nothing; what is another one when it is read again was written
    meanwhile.
    """
    length = min(_SAMPLE, size - at)
    first, second, again = (bytearray(length) for _ in range(3))
    try:
        await one.read_into(at, memoryview(first))
        await other.read_into(at, memoryview(second))
        if first != second:
            await one.read_into(at, memoryview(again))
    except MpconvError:
        return False, False
    return first != second and first == again, any(first)


async def _data_of(store: Transport, size: int) -> list[Extent]:
    """Where data lies, as far as a few calls tell."""
    found: list[Extent] = []
    at = 0
    try:
        for _ in range(_MAP_CALLS):
            if at >= size:
                break
            extents = await store.block_status(at, size - at)
            found += [extent for extent in extents if extent.kind is not Kind.ZERO]
            at = extents[-1].end
    except MpconvError:
        pass
    return found


def refusal(found: Verdict, source: str, target: str) -> UsageError | None:
    """Of a copy between two stores of these names."""
    names = f"'{source}'" if source == target else f"'{source}' and '{target}'"
    if found is Verdict.CERTAIN:
        return UsageError(f"source and target are the same image: {names}")
    if found is Verdict.PROBABLE:
        why = f"name another target, or give {ALLOW} if you know that they are two"
        return UsageError(f"source and target are probably the same image: {names}: {why}")
    return None


async def check_apart(
    sources: Sequence[Transport], target: Transport, *, allowed: bool, begun: bool = False, harmless: bool = False
) -> None:
    """UsageError when the target is one of the sources under another name, or the disk that one of them is a file on.
    `allowed`: somebody knows that what is probable is not so. `begun`, `harmless`: as verdict_of's.
    """
    *found, its = await asyncio.gather(*(store.known_by() for store in (*sources, target)))
    for source, facts in zip(sources, found, strict=True):
        if suspects([facts, its]):
            verdict = await _closely(source, target, begun=begun or allowed, harmless=harmless)
            error = refusal(verdict, source.name, target.name)
            if error is not None and not (allowed and verdict is Verdict.PROBABLE):
                raise error
        if holds(its, facts):
            raise UsageError(f"the target '{target.name}' is the disk on which the source '{source.name}' lies")


async def changed(stores: Sequence[Transport], *, exactly: bool = False) -> Transport | None:
    """The first file that is not what it was when it was opened. `exactly`: not even its links or rights are others;
    these come and go without harm in the hours that a copy may take, and hardly in moments.
    """
    for store in stores:
        if store.stamp is None:
            continue
        for now in (await store.known_by()).files:
            then = store.stamp
            if (now.size, now.modified) != (then.size, then.modified) or (exactly and now.changed != then.changed):
                return store
    return None
