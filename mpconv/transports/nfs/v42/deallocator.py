"""Zeros in a file on an NFS server by NFSv4.2 DEALLOCATE, believed only as far as they can be checked.

What always holds: nothing is deallocated before bytes that this process made up and wrote over the other protocol were
seen in the file here (two file systems may both have the same fileid); RFC 7862 promises zeros, and still four places
of every GiB are read back, and all that SEEK tells to be data, unless the server knows of no holes; after any error,
refusal or doubt the caller writes the zeros, and nothing is deallocated any more.

One range at a time. A DEALLOCATE that was given up may still be done later: the zeros that are written then are what it
leaves too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random

from mpconv.model.errors import MpconvError
from mpconv.model.units import GiB, KiB, MiB, align_down
from mpconv.transports.nfs.v42.client import Client
from mpconv.transports.nfs.v42.compound import Attributes, Refused, What
from mpconv.transports.nfs.v42.opening import Lie, Read, Unsure, Where, Write, open_file, said, seek

_log = logging.getLogger(__name__)
SMALLEST = MiB
"""From here on it pays: on loopback 1 MiB takes 0.5 ms either way, 16 MiB 4 ms and not 16; and flushes are shorter."""
_PIECE = GiB
_SAMPLE = 4 * KiB
_MOST_LEFT, _MOST_ASKED = 4 * MiB, 64
"""What is read back of a range, and in how many parts: no more than the ends of ranges in blocks of 1 MiB."""
_MARK = 32
_IDLE_SECONDS = 20.0
"""A lease that nobody renews runs out: ganesha's after 60 s, the Linux kernel's after 90 s, others' after 30 s."""


class Deallocator:
    """For one file, connected when it is first needed. `seconds`: for connecting; `patience`: for a DEALLOCATE."""

    def __init__(
        self,
        where: Where,
        *,
        size: int,
        fileid: int,
        read: Read,
        write: Write,
        seconds: float = 5.0,
        patience: float = 60.0,
        idle: float = _IDLE_SECONDS,
    ) -> None:
        self._where = where
        self._size = size
        self._fileid = fileid
        self._read = read
        self._write = write
        self._seconds = seconds
        self._patience = patience
        self._idle = idle
        self._lock = asyncio.Lock()
        self._opening: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._proved = False
        self._tells_holes = True
        self._used_at = 0.0
        self._works = False
        self.doubt: str | None = None

    @property
    def words(self) -> str:
        """What is done with zeros, as far as is known."""
        if self.doubt is not None:
            return f"zeros are written (no DEALLOCATE: {self.doubt})"
        return "blocks are freed (DEALLOCATE, NFSv4.2)" if self._works else "zeros are written"

    async def zero(self, offset: int, length: int) -> bool:
        """Whether the range was made a hole. Raises only what the other protocol raises."""
        if length < SMALLEST:
            return False
        async with self._lock:
            if self.doubt is None:
                try:
                    await self._make_holes(await self._connected(offset), offset, offset + length)
                    self._works = True
                except MpconvError:
                    raise
                except Exception as error:
                    self._give_up(said(error), logging.INFO)
                    await self._hang_up(politely=True)
            return self.doubt is None

    async def close(self) -> None:
        """Hang up, which ends what is under way. May be called twice."""
        self._give_up("closed", logging.DEBUG)
        if self._opening is not None:
            self._opening.cancel()
        await self._hang_up(politely=not self._lock.locked())

    def _give_up(self, why: str, level: int) -> None:
        if self.doubt is None:
            _log.log(level, "nothing is deallocated in %s: %s", self._where.path, why)
            self.doubt = why

    async def _hang_up(self, *, politely: bool) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.hang_up() if not politely else await client.close()

    async def _make_holes(self, client: Client, start: int, stop: int) -> None:
        """Piece by piece, cut where no block is cut: of one that two pieces share nothing would be freed."""
        while start < stop:
            end = min(align_down(start + _PIECE, _PIECE), stop)
            if not self._same(await client.deallocate(start, end - start)):
                raise Lie("the file has become another one")
            self._used_at = asyncio.get_running_loop().time()
            sample = min(_SAMPLE, end - start)
            last = end - sample
            places = {start, last, random.randint(start, last), random.randint(start, last)}
            checks = [self._sample(at, sample) for at in places]
            # What lies before and after is among the samples, and may be in blocks that are not freed.
            checks.append(self._check_holes(client, start + sample, last))
            results = await asyncio.gather(*checks, return_exceptions=True)
            for result in results:
                if result is not None:
                    raise result
            start = end

    async def _check_holes(self, client: Client, start: int, end: int) -> None:
        """Lie where something is left, Unsure where too much may be. Nothing where the server knows of no holes."""
        at, left, asked = start, 0, 0
        while at < end and self._tells_holes:
            try:
                data = await seek(client, at, What.DATA, self._size)
                if data >= end:
                    return
                hole = min(await seek(client, data, What.HOLE, self._size), end)
            except Refused:
                self._tells_holes = False
                return
            if hole == data:
                raise Lie(f"at byte {at} there is both a hole and data")
            if (data, hole) == (start, end):
                return
            left, asked, at = left + hole - data, asked + 1, hole
            if left > _MOST_LEFT or asked > _MOST_ASKED:
                raise Unsure("the server answers OK, and tells of data that are left")
            await self._sample(data, hole - data)

    async def _sample(self, at: int, length: int) -> None:
        buffer = bytearray(length)
        await self._read(at, memoryview(buffer))
        if any(buffer):
            raise Lie(f"the server answers OK, and byte {at} on is not zero")

    def _same(self, attributes: Attributes) -> bool:
        return attributes.regular and (attributes.size, attributes.fileid) == (self._size, self._fileid)

    async def _connected(self, at: int) -> Client:
        """One that has proved, by the bytes at `at`, that it has the same file; a new one after some idle time."""
        if self._client is not None and asyncio.get_running_loop().time() - self._used_at > self._idle:
            await self._hang_up(politely=False)
        if self._client is None:
            self._proved = False
            self._opening = asyncio.create_task(self._open())
            try:
                await asyncio.wait([self._opening])
            finally:
                self._opening.cancel()
            if not self._opening.cancelled():
                self._opening.result()
        client = self._client
        if client is None or self.doubt is not None:
            raise Unsure("closed")
        if not self._proved:
            await self._prove(client, at)
            self._proved = True
        return client

    async def _open(self) -> None:
        client, _ = await open_file(self._where, self._same, seconds=self._seconds, writing=True)
        client.seconds = self._patience
        self._client = client
        self._used_at = asyncio.get_running_loop().time()

    async def _prove(self, client: Client, at: int) -> None:
        """Unsure unless what is written there over the other protocol is seen by this one."""
        before, mark = bytearray(_MARK), bytearray(os.urandom(_MARK))
        await self._read(at, memoryview(before))
        try:
            await self._write(at, memoryview(mark))
            async with asyncio.timeout(self._seconds):
                seen = await client.read(at, _MARK)
        finally:
            await self._write(at, memoryview(before))
        if seen != mark:
            raise Unsure("it is another file")
