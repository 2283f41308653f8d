"""One URL after the other: opened, asked, measured; then source and target together."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from mpconv import transports
from mpconv.inspection.doctor import pairing
from mpconv.inspection.doctor.findings import Choice, Examination, milliseconds, size_words
from mpconv.inspection.doctor.speed import Places, measure
from mpconv.inspection.info import info
from mpconv.model.errors import Fatal, MpconvError, StatusWithdrawn, UsageError
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.model.units import human
from mpconv.options.copy import Options
from mpconv.options.tuning import workers_for
from mpconv.transports.base import Access, Transport
from mpconv.transports.identity import Verdict, suspects
from mpconv.transports.sameness import verdict_of

_OPENING_SECONDS = 5.0
"""For each answer before anything is measured."""
_WRITING_SECONDS = 30.0
"""For what is written and read back besides."""
_MAP_CALLS = 64
_SAMPLES = 8
_SAMPLE = 4096

Examine = Callable[[Examination, str, float], Awaitable[Transport | None]]
Show = Callable[[Examination], None]


class ExaminationOptions(Struct, frozen=True):
    """`seconds`: for measuring, of each URL; `format`: of the first image, None: its first bytes tell; `scratch`: the
    URL that may be overwritten.
    """

    seconds: float = 3.0
    format: str | None = None
    scratch: str | None = None


def _examiner(url: str) -> Examine:
    kind = transports.family_of(url)
    if kind == "nfs":
        from mpconv.inspection.doctor import nfs  # noqa: PLC0415  (only what serves the URL)

        return nfs.examine
    if kind == "iscsi":
        from mpconv.inspection.doctor import iscsi  # noqa: PLC0415

        return iscsi.examine
    if kind == "file":
        from mpconv.inspection.doctor import local  # noqa: PLC0415

        return local.examine
    raise UsageError(
        f"'{transports.redacted(url)}' is no storage that could be examined: name a file, or a URL nfs:// or iscsi://"
    )


async def examine(urls: Sequence[str], how: ExaminationOptions, show: Show) -> list[Examination]:
    """Each of them, and with several the first as a source of all others; `show` is given each when all is known of it.
    What cannot be a URL at all is raised; everything else is told.
    """
    examiners = [_examiner(url) for url in urls]
    if how.scratch is not None and len(urls) > 1 and how.scratch == urls[0]:
        raise UsageError("--write-test names the source, which would be overwritten")
    found: list[Examination] = []
    for number, (url, examiner) in enumerate(zip(urls, examiners, strict=True)):
        role = "" if len(urls) == 1 else "target" if number else "source"
        one = Examination(transports.redacted(url).removeprefix("file:"), role)
        await _examine(one, url, examiner, how)
        if role == "target":
            pairing.check(found[0], one, await _verdict(found[0], one, urls[0], url))
        if url == how.scratch and one.opened:
            verdicts = [await _verdict(other, one, its, url) for other, its in zip(found, urls, strict=False)]
            await _overwrite(one, url, how, other=any(verdict is not Verdict.DIFFERENT for verdict in verdicts))
        if one.opened and role != "source":
            one.choice = choice(found[0] if found else one, one)
        found.append(one)
        show(one)
    return found


async def _examine(found: Examination, url: str, examiner: Examine, how: ExaminationOptions) -> None:
    store = await examiner(found, url, _OPENING_SECONDS)
    if store is None:
        return
    if found.busy and found.role != "target":
        what = f"the device is in use: {found.busy}. A copy of it may be half old and half new"
        found.advise("in-use", what, "copy a snapshot of it, or unmount it first")
    try:
        found.opened, found.known, found.size = True, await store.known_by(), store.size
        found.marks = store.marks
        found.guest_size, found.answer = store.guest_size, store.round_trip
        found.fixed, found.ordered = not store.creatable, store.ordered
        found.fact("size", store.size, size_words(store.size))
        found.used = await store.disk_size()
        await _writable(found, url)
        await _format(found, url, how)
        extents = await _map(found, store)
        if store.size:
            async with asyncio.timeout(how.seconds + _OPENING_SECONDS):
                found.cells += await measure(store, Places(extents, store.size), how.seconds)
    except TimeoutError:
        what = f"requests take longer than {_OPENING_SECONDS:g} seconds"
        found.problem("slow", what, "see what else keeps the server busy, and its log")
    except MpconvError as error:
        found.problem("reading", str(error), "see the server's log: a copy would end with this error")
    finally:
        await store.close()


async def _verdict(one: Examination, other: Examination, its: str, url: str) -> Verdict:
    """Whether the two are one. They are opened again only if that is doubtful."""
    if one.known is None or other.known is None or not suspects([one.known, other.known]):
        return Verdict.DIFFERENT
    try:
        async with asyncio.timeout(_OPENING_SECONDS):
            first = await transports.connect(its, Access.READ)
            try:
                second = await transports.connect(url, Access.READ)
                try:
                    return await verdict_of(first, second)
                finally:
                    await second.close()
            finally:
                await first.close()
    except (MpconvError, TimeoutError):
        return Verdict.PROBABLE


async def _overwrite(found: Examination, url: str, how: ExaminationOptions, *, other: bool) -> None:
    """The write test, of what is nothing that was named before. `other`: it is."""
    if found.busy or found.writable is False or other:
        why = found.busy or found.why_not_writable or "it is another image of this command"
        found.problem("not-tested", f"nothing was written to it: {why}", "name another target with --write-test")
        return
    from mpconv.inspection.doctor import write_probe  # noqa: PLC0415  (few ask for it)

    store: Transport | None = None
    try:
        store = await transports.open_place(Place(url=url, marks=found.marks), Access.WRITE, locked=True)
        async with asyncio.timeout(how.seconds + _WRITING_SECONDS):
            await write_probe.run(found, store, how.seconds)
    except TimeoutError:
        what = f"the write test was given up after {how.seconds + _WRITING_SECONDS:g} seconds, and wrote a part"
        found.problem("slow", what, "see what else keeps the server busy, and its log")
    except MpconvError as error:
        found.problem("writing", str(error), "see the server's log: a copy would end with this error")
    finally:
        if store is not None:
            await store.close()


async def _writable(found: Examination, url: str) -> None:
    """Whether it can be opened for writing; nothing is written."""
    try:
        async with asyncio.timeout(_OPENING_SECONDS):
            other = await transports.connect(url, Access.WRITE)
    except (Fatal, TimeoutError) as error:
        found.writable = False
        found.why_not_writable = (error.reason or error.why) if isinstance(error, Fatal) else "no answer"
        found.fact("permitted", ["read"], f"to read; not to write: {found.why_not_writable}")
        return
    await other.close()
    found.writable = True
    found.fact("permitted", ["read", "write"], "to read and to write")


async def _format(found: Examination, url: str, how: ExaminationOptions) -> None:
    """What the bytes are; a target's do not matter."""
    if found.role == "target":
        return
    tell = found.problem if found.role == "source" else found.advise
    try:
        async with asyncio.timeout(_OPENING_SECONDS):
            told = await info(Place(url=url, format=how.format, marks=found.marks))
    except Fatal as error:
        tell("format", error.reason or error.why, "give -f raw to copy its bytes as they are")
        return
    found.guest_size, found.format = told.size, told.format
    backing = told.qcow2.backing if told.qcow2 is not None else None
    text = told.format if told.format == "raw" else f"{told.format}, the disk in it has {size_words(told.size)}"
    found.fact("format", told.format, text)
    if backing is not None:
        tell("backing-file", f"the image needs its backing file '{backing}'", "give --allow-backing to convert")


async def _map(found: Examination, store: Transport) -> list[Extent]:
    """Block status, as far as a few calls tell it; samples of what it calls zeros are read."""
    extents: list[Extent] = []
    at = 0
    try:
        for _ in range(_MAP_CALLS):
            if at >= store.size:
                break
            extents += await store.block_status(at, store.size - at)
            at = extents[-1].end
        zeros = [extent for extent in extents if extent.kind is Kind.ZERO]
        lie = await _lie(store, zeros)
    except StatusWithdrawn as error:
        lie, zeros = error.why, []
    if lie:
        what = f"what the server says of holes is wrong: {lie}"
        found.problem("holes-lie", what, "do not rely on this storage's holes: see for a newer version of its software")
        return []
    seen = sum(extent.length for extent in zeros)
    if zeros and at >= store.size and found.format != "qcow2":
        found.data_size = (found.guest_size or store.size) - seen
    if zeros:
        part = "" if at >= store.size else f" of the first {human(at)}"
        found.fact("holes", seen, f"{human(seen)}{part}, in {len(zeros)} {'pieces' if len(zeros) > 1 else 'piece'}")
    return extents


async def _lie(store: Transport, zeros: list[Extent]) -> str:
    """Where there is something in a hole; empty: samples are zeros."""
    for extent in random.choices(zeros, k=_SAMPLES) if zeros else []:
        length = min(_SAMPLE, extent.length)
        at = random.randint(extent.start, extent.end - length)
        sample = bytearray(length)
        await store.read_into(at, memoryview(sample))
        if any(sample):
            return f"there is data in the hole at byte {at}"
    return ""


def choice(source: Examination, target: Examination) -> Choice:
    """What convert would choose between the two, with -W; and without, as a part of the reason."""
    size = source.guest_size or target.guest_size or 0
    cores = len(os.sched_getaffinity(0))
    ends = [source.answer] if source is target else [source.answer, target.answer]
    workers, requests = workers_for(size, cores, Options(), round_trips=sum(ends))
    alone, _ = workers_for(size, cores, Options(), alone=target.ordered)
    why = f"{cores} core{'' if cores == 1 else 's'}, {human(size)}"
    if any(ends):
        why += f", {' and '.join(milliseconds(end) for end in ends)} for an answer"
    if alone != workers:
        why += f"; without -W, in order, {alone} worker{'' if alone == 1 else 's'}"
    return Choice(workers, requests, why)
