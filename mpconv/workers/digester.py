"""The digest coroutine: lease -> read -> sums of its blocks. Nothing is written."""

from __future__ import annotations

from mpconv.formats.base import Image
from mpconv.model.extent import Kind
from mpconv.protocol.job import Job
from mpconv.workers import buffers
from mpconv.workers.hashing import add_blocks
from mpconv.workers.lease_queue import LeaseQueue, Reports


class Digester:
    """One job in one worker: its connection and its leases."""

    def __init__(self, job: Job, source: Image, reports: Reports) -> None:
        self.job = job
        self.source = source
        self.pieces = LeaseQueue(job, reports)

    async def run(self) -> None:
        """Read until cancelled. Any error ends it."""
        buffer = buffers.make(self.job.buffer_size)
        while True:
            piece = await self.pieces.next()
            extent = piece.extent
            if extent.kind is Kind.DATA:
                view = buffer[: extent.length]
                await self.source.read_into(extent.start, view)
                add_blocks(piece.lease.sums, extent.start, view)
            await self.pieces.written(piece)
