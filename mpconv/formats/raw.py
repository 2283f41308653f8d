"""raw: guest offsets are host offsets. The guest disk is whole sectors; the last one is padded with zeros."""

from __future__ import annotations

from mpconv.model.extent import Extent, Kind
from mpconv.model.units import SECTOR, align_up
from mpconv.transports.base import Buffer, Transport


class RawImage:
    """`size`: the guest's, in bytes, a multiple of a sector. Without `trusting` all of it counts as data."""

    format = "raw"

    def __init__(self, transport: Transport, *, trusting: bool = True) -> None:
        self.transport = transport
        self.trusting = trusting
        self.size = transport.guest_size

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from guest byte `offset`; past the end of the last sector's bytes come zeros."""
        stored = max(0, min(len(buffer), self.transport.size - offset))
        if stored < len(buffer):
            buffer[stored:] = bytes(len(buffer) - stored)
        if stored:
            await self.transport.read_into(offset, buffer[:stored])

    @property
    def stores(self) -> list[Transport]:
        """What the image lies in."""
        return [self.transport]

    @property
    def seams(self) -> tuple[int, ...]:
        """Where one part of the image ends and the next begins: nowhere."""
        return ()

    def locate(self, offset: int, length: int) -> list[tuple[Transport, int, int]]:
        """(store, its byte, bytes) of the guest's bytes from `offset` on, as far as they are stored as they are."""
        stored = min(length, self.transport.size - offset)
        return [(self.transport, offset, stored)] if stored > 0 else []

    async def close(self) -> None:
        """Give the connection back."""
        await self.transport.close()

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """As the transport's; the padding goes with what is before it."""
        stored = min(length, self.transport.size - offset)
        if stored <= 0 or not self.trusting:
            return [Extent(offset, length)]
        extents = await self.transport.block_status(offset, stored)
        last = extents[-1]
        if last.end == self.transport.size:
            end = min(offset + length, align_up(last.end, SECTOR))
            extents = [*extents[:-1], Extent(last.start, end - last.start, last.kind)]
        return whole_sectors(extents, offset + length)


def whole_sectors(extents: list[Extent], end: int) -> list[Extent]:
    """The same extents with every boundary on a sector, zeros giving way to data; nothing goes beyond `end`."""
    found: list[Extent] = []
    at = extents[0].start
    for extent in extents:
        if extent.kind is Kind.DATA:
            stop = min(end, align_up(extent.end, SECTOR))
        else:
            stop = extent.end if extent.end % SECTOR == 0 else extent.end - extent.end % SECTOR
        if stop > at:
            found.append(Extent(at, stop - at, extent.kind))
            at = stop
    return found or [Extent(at, min(end - at, SECTOR))]
