"""The compare coroutine: lease -> read both images -> the first byte at which they differ, if they do."""

from __future__ import annotations

import asyncio
import ctypes

from mpconv.formats.base import Image
from mpconv.model.extent import Kind
from mpconv.protocol.job import Job
from mpconv.workers import buffers
from mpconv.workers.lease_queue import LeaseQueue, Reports

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


def first_difference(first: memoryview, second: memoryview) -> int | None:
    """The index of the first byte that differs in two writable buffers of one length; None: they are equal."""
    one = ctypes.addressof(ctypes.c_char.from_buffer(first))
    other = ctypes.addressof(ctypes.c_char.from_buffer(second))
    low, high = 0, len(first)
    if not _memcmp(one, other, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _memcmp(one + low, other + low, middle - low):
            high = middle
        else:
            low = middle
    return low


class Comparer:
    """One job in one worker: its connections and its leases. An image that is shorter goes on with zeros."""

    def __init__(self, job: Job, first: Image, second: Image, reports: Reports) -> None:
        self.job = job
        self.first = first
        self.second = second
        self.reports = reports
        self.pieces = LeaseQueue(job, reports)

    async def run(self) -> None:
        """Compare until cancelled. Any error ends it."""
        both = [buffers.make(self.job.buffer_size) for _ in range(2)]
        while True:
            piece = await self.pieces.next()
            extent = piece.extent
            if extent.kind is Kind.DATA:
                views = [buffer[: extent.length] for buffer in both]
                await asyncio.gather(
                    *(
                        _read(image, extent.start, view)
                        for image, view in zip((self.first, self.second), views, strict=True)
                    )
                )
                at = first_difference(*views)
                if at is not None:
                    self.reports.differs(extent.start + at)
            await self.pieces.written(piece)


async def _read(image: Image, offset: int, view: memoryview) -> None:
    there = max(0, min(len(view), image.size - offset))
    if there < len(view):
        view[there:] = bytes(len(view) - there)
    if there:
        await image.read_into(offset, view[:there])
