"""What only writing tells: whether zeros that a server makes are zeros, and how fast it writes.

It overwrites a part of a target that its user has named as scratch, and leaves zeros there.
"""

from __future__ import annotations

import asyncio
import enum
import random

from mpconv.inspection.doctor.findings import Examination, milliseconds, size_words
from mpconv.inspection.doctor.speed import Places, measure_writes
from mpconv.model.errors import MpconvError
from mpconv.model.extent import Extent
from mpconv.model.units import SECTOR, MiB, align_down, human
from mpconv.transports.base import Transport
from mpconv.transports.iscsi.store import IscsiTransport
from mpconv.transports.iscsi.zeroing import Means

_LARGEST = 64 * MiB
"""Bytes that are overwritten at most, from the middle on."""
_PROVED = 16 * MiB
"""Bytes of them that are made zeros by each means and read back."""


class Verdict(enum.Enum):
    """Of one means to make zeros."""

    ZEROS = "zeros"
    REFUSED = "refused"
    FAILED = "failed"
    LIES = "lies"


async def run(found: Examination, store: Transport, seconds: float) -> None:
    """Facts, measurements and problems. Raises what the store raises."""
    middle = align_down(store.size // 2, MiB)
    region = Extent(middle, align_down(min(_LARGEST, store.size - middle), SECTOR))
    if not region.length:
        return
    left = "and may hold anything now"
    try:
        await _test(found, store, region, seconds)
        left = "and are zeros now"
    finally:
        text = f"{size_words(region.length)} from byte {region.start} on were overwritten, {left}"
        found.fact("written", {"start": region.start, "length": region.length}, text)


async def _test(found: Examination, store: Transport, region: Extent, seconds: float) -> None:
    clock = asyncio.get_running_loop().time
    found.cells += await measure_writes(store, Places([region], store.size), seconds)
    started = clock()
    await store.flush()
    took = clock() - started
    found.fact("flush", took, f"{milliseconds(took)} after these writes")
    part = Extent(region.start, min(_PROVED, region.length))
    if isinstance(store, IscsiTransport):
        verdicts = {means: await _by(found, store, means, part) for means in store.traits.means}
        told = ", ".join(f"{means.name} {verdict.value}" for means, verdict in verdicts.items())
        by_name = {means.name: verdict.value for means, verdict in verdicts.items()}
        found.fact("zeros-proved", by_name, f"{told}: {human(part.length)} each, read back whole")
    else:
        await _as_a_copy_does(found, store, part)
    await _fill(store, region, bytes(MiB))
    await store.zero(region.start, region.length)  # which gives the room back; zeros they are already
    await store.flush()


async def _fill(store: Transport, region: Extent, piece: bytes) -> None:
    for at in range(region.start, region.end, len(piece)):
        await store.write(at, memoryview(piece)[: region.end - at])


async def _differing(store: Transport, region: Extent, piece: bytes) -> int:
    """Bytes of the sectors that are not as they should be, with `piece` over and over."""
    differing = 0
    for at in range(region.start, region.end, len(piece)):
        wanted = piece[: region.end - at]
        there = bytearray(len(wanted))
        await store.read_into(at, memoryview(there))
        if there != wanted:
            sectors = range(0, len(wanted), SECTOR)
            differing += SECTOR * sum(there[one : one + SECTOR] != wanted[one : one + SECTOR] for one in sectors)
    return differing


async def _prepared(found: Examination, store: Transport, part: Extent) -> bool:
    """Random bytes everywhere, which are read back."""
    pattern = random.randbytes(MiB)
    await _fill(store, part, pattern)
    await store.flush()
    differing = await _differing(store, part, pattern)
    if differing:
        what = f"of {human(part.length)} that were written and flushed, {human(differing)} read back as something else"
        found.problem("writes-lie", what, "do not use this storage: look for a broken disk, or a second writer")
    return not differing


async def _by(found: Examination, store: IscsiTransport, means: Means, part: Extent) -> Verdict:
    """One way to make zeros on a LUN, alone."""
    if not await _prepared(found, store, part):
        return Verdict.FAILED
    try:
        done = await store.zero_by(means, part.start, part.length)
    except MpconvError as error:
        what = f"{means.name}: {error.reason or error.why}"
        found.problem("zeros-fail", what, "see the target's log; a copy that meets zeros would end with this error")
        return Verdict.FAILED
    if done is None:
        return Verdict.REFUSED
    differing = await _differing(store, part, bytes(MiB))
    if not differing:
        return Verdict.ZEROS
    what = (
        f"the target answers GOOD to {means.name}, and {human(differing)} of {human(part.length)} are no zeros after it"
    )
    result = (
        "mpconv proves what UNMAP does; other programs may not" if means.hint else "a copy to it may leave old data"
    )
    fix = f"switch it off on the target (tgt: thin_provisioning=0), or update its software: {result}"
    found.problem(f"{means.name}-lies", what, fix)
    return Verdict.LIES


async def _as_a_copy_does(found: Examination, store: Transport, part: Extent) -> None:
    """Zeros in a file or on a device."""
    if not await _prepared(found, store, part):
        return
    done = await store.zero(part.start, part.length)
    differing = await _differing(store, part, bytes(MiB)) if done else 0
    if differing:
        what = f"{store.zeroing}, and {human(differing)} of {human(part.length)} are not zeros"
        found.problem("zeros-lie", what, "do not use this storage as a target: see for a newer version of its software")
    else:
        text = f"{store.zeroing}: {human(part.length)}, read back whole" if done else store.zeroing
        found.fact("zeros-proved", store.zeroing, text)
