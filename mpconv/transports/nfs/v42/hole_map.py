"""Where a file on an NFS server has holes, believed only as far as it can be checked.

The map is walked in stretches of limited time, each when it is first asked for. Nothing of a stretch is handed out
before all of it was plausible, random samples inside its holes were zeros, and the file was seen not to have changed.
Any error ends the map: what comes after is data. A lie ends it too, and takes back what was handed out before.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections.abc import Callable, Iterable

from msgspec import Struct

from mpconv.model.extent import Extent, Kind, merged
from mpconv.model.units import GiB, KiB, MiB
from mpconv.transports.nfs.v42.client import Client
from mpconv.transports.nfs.v42.compound import Attributes, What
from mpconv.transports.nfs.v42.opening import Lie, Read, Unsure, Where, open_file, said, seek
from mpconv.transports.sampling import places

_log = logging.getLogger(__name__)
_SMALLEST_HOLE = 64 * KiB
_CALLS = 16384
_ALL_CALLS = 512 * 1024
"""So many extents take up 70 MB, as many calls 20 s on loopback."""
_STRETCH_SHARE = 0.1
_WALK_SHARE = 12
_WORTH = 64 * MiB
_FIRST_SKIP = GiB // 4
_SAMPLES, _MANY_SAMPLES = 8, 64
_SLACK = MiB
Clock = Callable[[], float]
"""Seconds, from whenever."""


class FileFacts(Struct, frozen=True):
    """What another protocol says of the file. `used`: the bytes it occupies on the server's disk."""

    size: int
    fileid: int
    mtime: int
    mtime_nsec: int
    used: int

    def are_of(self, attributes: Attributes) -> bool:
        """Whether it is the same file, in the same state. Version 3 of the protocol has 32-bit seconds."""
        return (
            attributes.regular
            and (attributes.size, attributes.fileid, attributes.mtime_nsec) == (self.size, self.fileid, self.mtime_nsec)
            and (attributes.mtime ^ self.mtime) & 0xFFFFFFFF == 0
        )


async def connect(
    where: Where, *, facts: FileFacts, read: Read, seconds: float = 5.0, clock: Clock = time.monotonic
) -> HoleMap | None:
    """A map of the file there, which must be the one that `facts` tell of; None when there is none to be had.

    `seconds`: for connecting in all, and for any one answer later; a tenth of it for a stretch of the map, twelve times
    as much for all of it, by `clock`.
    """
    if facts.used >= facts.size:
        return None
    try:
        client, attributes = await open_file(where, facts.are_of, seconds=seconds)
    except Exception as error:
        _log.info("no map of the holes of %s: %s", where.path, said(error))
        return None
    return HoleMap(client, where.path, facts, attributes, read, seconds, clock)


class HoleMap:
    """The map. `doubt`: why it is no more believed, if so; `lied`: because of a lie; `withdrawn`: zeros that may have
    been handed out before that: they must be read after all.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        facts: FileFacts,
        attributes: Attributes,
        read: Read,
        seconds: float,
        clock: Clock,
    ) -> None:
        self.size = facts.size
        self.fileid = facts.fileid
        self.doubt: str | None = None
        self.lied = False
        self.withdrawn: list[Extent] = []
        self.calls = 0
        self._client = client
        self._name = name
        self._used = facts.used
        self._attributes = attributes
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._walking = 0.0
        self._skip = _FIRST_SKIP
        self._known: list[Extent] = []
        self._end = 0
        self._zeros = 0
        self._lock = asyncio.Lock()

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """Extents from `offset` on without gaps, at least one, at most `length` bytes. Never raises."""
        async with self._lock:
            while self._end <= offset < self.size:
                await self._stretch()
        stop = min(offset + length, self._end)
        first = bisect.bisect_right(self._known, offset, key=lambda extent: extent.end)
        after = bisect.bisect_left(self._known, stop, key=lambda extent: extent.start)
        found = []
        for extent in self._known[first:after]:
            start, end = max(extent.start, offset), min(extent.end, stop)
            found.append(Extent(start, end - start, extent.kind))
        return found or [Extent(offset, length)]

    async def close(self) -> None:
        """Hang up. What is not known yet is data. May be called twice."""
        self._give_up("closed", logging.DEBUG)
        await self._client.close()

    # -- walking

    async def _stretch(self) -> None:
        """Learn more; ends with a later `_end`."""
        begin, started = self._end, self._clock()
        try:
            extents = list(_without_small_holes(await self._walk(begin, started)))
            zeros = [extent for extent in extents if extent.kind is Kind.ZERO]
            await self._check(zeros)
        except Lie as error:
            known, self._known, self._end = self._known, [], 0
            self.lied = True
            self.withdrawn = [extent for extent in known if extent.kind is Kind.ZERO]
            self._give_up(str(error))
        except Exception as error:
            self._give_up(said(error))
        else:
            if self._end == begin:  # it was not closed meanwhile
                self._add(extents)
                length = sum(extent.length for extent in zeros)
                self._zeros += length
                self._pays(length, self._clock() - started)
        if self._end == self.size:
            await self._client.close()

    def _pays(self, zeros: int, seconds: float) -> None:
        """Where the walk finds less than is read in the same time, some of the file is passed over; and it ends."""
        self._walking += seconds
        if self._end < self.size and zeros < _WORTH * seconds:
            self._add([Extent(self._end, min(self._skip, self.size - self._end))])
            self._skip *= 2
        if self._end < self.size and self._walking >= self._seconds * _WALK_SHARE:
            self._give_up("it takes too long")
        if self._end < self.size and self.calls >= _ALL_CALLS:
            self._give_up("there is no end of holes")

    def _add(self, extents: Iterable[Extent]) -> None:
        last = self._known[-1:]
        self._known[-1:] = merged([*last, *extents])
        self._end = self._known[-1].end

    def _give_up(self, why: str, level: int = logging.INFO) -> None:
        if self._end < self.size:
            _log.log(level, "the map of the holes of %s ends at byte %d: %s", self._name, self._end, why)
            self.doubt = why
            self._add([Extent(self._end, self.size - self._end)])

    async def _walk(self, at: int, started: float) -> list[Extent]:
        """Data and holes by turns, from `at` until the end, the calls or the time run out; never ends with a hole."""
        deadline, last_call = started + self._seconds * _STRETCH_SHARE, self.calls + _CALLS
        found: list[Extent] = []
        while at < self.size and (not found or (self.calls < last_call and self._clock() < deadline)):
            data = await self._seek(at, What.DATA)
            if data == at and found:
                raise Lie(f"at byte {at} there is both a hole and data")
            if data > at:
                found.append(Extent(at, data - at, Kind.ZERO))
            if data == self.size:
                break
            at = await self._seek(data, What.HOLE)
            if at == data:
                raise Lie(f"at byte {at} there is both a hole and data")
            found.append(Extent(data, at - data))
        return found

    async def _seek(self, offset: int, what: What) -> int:
        self.calls += 1
        return await seek(self._client, offset, what, self.size)

    # -- distrust

    async def _check(self, zeros: list[Extent]) -> None:
        """Lie unless samples of these holes are zeros; any other error when the file is not as it was."""
        claimed = self._zeros + sum(extent.length for extent in zeros)
        odd = claimed + self._used > self.size + _SLACK  # so holes take up room: set aside but not written?
        chosen = places(zeros, _MANY_SAMPLES if odd else _SAMPLES) if zeros else []
        async with asyncio.timeout(self._seconds):
            results = await asyncio.gather(*map(self._sample, chosen), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        if await self._client.attributes() != self._attributes:
            raise Unsure("the file has changed")

    async def _sample(self, place: Extent) -> None:
        buffer = bytearray(place.length)
        await self._read(place.start, memoryview(buffer))
        if any(buffer):
            raise Lie(f"there is data in the hole at byte {place.start}")


def _without_small_holes(extents: Iterable[Extent]) -> Iterable[Extent]:
    """A hole that is dearer to step over than to read is data."""
    return merged(
        Extent(extent.start, extent.length) if extent.length < _SMALLEST_HOLE else extent for extent in extents
    )
