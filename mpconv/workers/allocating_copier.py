"""The copy coroutine for targets whose format says where bytes lie: lease -> read -> zeros, compress -> ask for places
-> write them there -> done.

A lease is one buffer of whole clusters. What is compressed is compressed beside the event loop, in threads that the
codecs let run at the same time.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct
from msgspec.structs import replace

from mpconv.formats.base import Image
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import align_up
from mpconv.protocol.job import Clusters, Job
from mpconv.transports.base import Transport
from mpconv.workers.copier import Copier
from mpconv.workers.lease_queue import Piece, Reports
from mpconv.workers.zeros import Run, find_runs, is_zero

_MOST_THREADS = 8


class Prepared(Struct, frozen=True):
    """What of a buffer is to be stored. `needs` and `parts`: as Ready's. `zeros`: bytes of the buffer that are zero.

    `blobs`: for each need that is not 0 the compressed bytes, or where in the buffer the cluster begins. `runs`: of
    data and zeros, where nothing is compressed.
    """

    needs: list[int]
    blobs: list[int | bytes]
    parts: list[int]
    zeros: int
    runs: list[Run]


class ClusterCopier(Copier):
    """One job in one worker, onto one target. The buffers' tails behind the guest disk's end are zeros."""

    def __init__(self, job: Job, source: Image, targets: list[Transport], reports: Reports, clusters: Clusters) -> None:
        super().__init__(job, source, targets, reports)
        self.clusters = clusters
        self._compressing: ThreadPoolExecutor | None = None
        self._codecs = threading.local()
        if clusters.compression is not None:
            threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
            self._compressing = ThreadPoolExecutor(threads, thread_name_prefix="compress")

    async def _copy(self, piece: Piece, buffer: memoryview) -> None:
        extent, lease = piece.extent, piece.lease
        view = buffer[: align_up(extent.length, self.clusters.size)]
        await self._fill(piece, view)
        prepared = await self._prepare(extent, view)
        lease.needs, lease.parts = prepared.needs, prepared.parts
        await self.pieces.may_write(piece)
        [target] = self.targets
        if self.clusters.in_place and lease.places:
            first = next(number for number, need in enumerate(prepared.needs) if need) * self.clusters.size
            writes = in_place(view[: extent.length], prepared.runs, lease.places[0] - first)
        else:
            writes = joined(view, prepared, lease.places, self.clusters)
        for number, (place, parts) in enumerate(writes, 1):
            if number == len(writes):
                await self.pieces.sending_the_last(piece)
            if len(parts) == 1:
                await target.write(place, parts[0])
            else:
                await target.write_parts(place, parts)
        await self._through(target)
        lease.zeros += prepared.zeros
        await self.pieces.written(piece)

    async def _fill(self, piece: Piece, view: memoryview) -> None:
        extent = piece.extent
        if extent.kind is Kind.DATA:
            await self._read(piece, view[: extent.length])
            if extent.length < len(view):
                view[extent.length :] = bytes(len(view) - extent.length)
        else:
            view[:] = bytes(len(view))

    async def _prepare(self, extent: Extent, view: memoryview) -> Prepared:
        if self._compressing is not None:
            return await asyncio.get_running_loop().run_in_executor(self._compressing, self._compress, view, extent)
        everything: list[Run] = [(0, extent.length, False)]
        stores_zeros = self._stores_zeros(extent)
        if stores_zeros and self.clusters.part == self.clusters.size:
            return plan(view, everything, self.clusters)
        runs = find_runs(
            view[: extent.length], extent.start, sparse_size=self.job.sparse_size, alignment=self.alignment
        )
        prepared = plan(view, runs, self.clusters)
        if stores_zeros:
            # Every byte is written, but the parts that are zero are told apart all the same.
            prepared = replace(plan(view, everything, self.clusters), parts=prepared.parts)
        return prepared

    def _stores_zeros(self, extent: Extent) -> bool:
        """No extent goes across the end of that."""
        end = self.clusters.zeros_end
        return self.clusters.stores_zeros and (end is None or extent.start < end)

    def _compress(self, view: memoryview, extent: Extent) -> Prepared:
        """In a thread. A cluster that does not shrink is stored as it is."""
        compress = getattr(self._codecs, "compress", None)
        if compress is None:
            from mpconv.formats.qcow2.codecs import compressor  # noqa: PLC0415  (others do without)

            assert self.clusters.compression is not None
            compress = self._codecs.compress = compressor(self.clusters.compression, self.clusters.level)
        size = self.clusters.size
        needs: list[int] = []
        parts: list[int] = []
        blobs: list[int | bytes] = []
        zeros = 0
        every_part = (1 << size // self.clusters.part) - 1
        looks = self.job.sparse_size and not self._stores_zeros(extent)
        for at in range(0, len(view), size):
            cluster = view[at : at + size]
            if looks and not cluster[0] and is_zero(cluster):
                needs.append(0)
                parts.append(0)
                zeros += min(size, extent.length - at)
                continue
            blob = compress(cluster)
            shrunk = len(blob) < size
            blobs.append(blob if shrunk else at)
            needs.append(len(blob) if shrunk else size)
            parts.append(0 if shrunk else every_part)
        return Prepared(needs, blobs, parts if self.clusters.part < size else [], zeros, [])


def plan(view: memoryview, runs: list[Run], clusters: Clusters) -> Prepared:
    """Whole clusters, of those that data lies in. `runs`: of `view`'s bytes, as far as they are the guest's."""
    size, part = clusters.size, clusters.part
    parts = [0] * (len(view) // size)
    for offset, length, zero in runs:
        if not zero:
            for number in range(offset // part, -(-(offset + length) // part)):
                parts[number * part // size] |= 1 << number % (size // part)
    needs = [size if bits else 0 for bits in parts]
    blobs: list[int | bytes] = [number * size for number, need in enumerate(needs) if need]
    zeros = sum(length for _, length, zero in runs if zero)
    return Prepared(needs, blobs, parts if part < size else [], zeros, runs)


Write = tuple[int, list[memoryview]]
"""A place, and the bytes that go there, in one part or several."""


def in_place(view: memoryview, runs: list[Run], shift: int) -> list[Write]:
    """Of the data. `shift`: the place of the buffer's first byte."""
    return [(shift + offset, [view[offset : offset + length]]) for offset, length, zero in runs if not zero]


def joined(view: memoryview, prepared: Prepared, places: list[int], clusters: Clusters) -> list[Write]:
    """The fewest writes. Compressed clusters that lie side by side go in one, padded with zeros to a whole unit; plain
    ones are written from the buffer that they are in.
    """
    writes: list[Write] = []
    blobs, size = prepared.blobs, clusters.size
    at = 0
    while at < len(blobs):
        first, blob = at, blobs[at]
        at += 1
        if isinstance(blob, int):
            while at < len(blobs) and (blobs[at], places[at]) == (
                blob + (n := at - first) * size,
                places[first] + n * size,
            ):
                at += 1
            writes.append((places[first], [view[blob : blob + (at - first) * size]]))
            continue
        end = places[first] + len(blob)
        together = [memoryview(blob)]
        while at < len(blobs) and places[at] == end and isinstance(following := blobs[at], bytes):
            together.append(memoryview(following))
            end += len(following)
            at += 1
        if end % clusters.unit:
            together.append(memoryview(bytes(-end % clusters.unit)))
        writes.append((places[first], together))
    return writes
