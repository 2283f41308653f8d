"""A part of a byte store as a store of its own: qemu's raw driver with `offset=` and `size=`."""

from __future__ import annotations

from mpconv.model.extent import Extent
from mpconv.model.units import SECTOR, align_up
from mpconv.transports.base import Buffer, Fingerprint, Sharing, Transport, cannot_open
from mpconv.transports.identity import Facts


class Slice(Transport):
    """`size` bytes of `inner` from its byte `start`; None: all that follow."""

    creatable = False

    def __init__(self, inner: Transport, start: int, size: int | None) -> None:
        whole = align_up(inner.size, SECTOR)
        if start > whole:
            why = f"Offset ({start}) cannot be greater than size of the containing file ({whole})"
            raise cannot_open(inner.name, why)
        if size is not None and start + size > whole:
            why = f"The sum of offset ({start}) and size ({size}) has to be smaller or equal to the actual size"
            raise cannot_open(inner.name, f"{why} of the containing file ({whole})")
        if size is not None and size % SECTOR:
            raise cannot_open(inner.name, f"Specified size is not multiple of {SECTOR}")
        left = max(0, inner.size - start)
        self._guest_size = align_up(whole - start if size is None else size, SECTOR)
        self._inner = inner
        self._start = start
        self.name = inner.name
        self.identity = inner.identity
        self.stamp = inner.stamp
        self.marks = inner.marks
        self.size = left if size is None else min(left, size)
        self.limits = inner.limits
        self.round_trip = inner.origin.round_trip
        self.fixed_size = inner.fixed_size
        self.ordered = inner.ordered
        self.rewrites = inner.rewrites if inner.rewrites and start % inner.rewrites == 0 else 0
        self.grows = inner.grows and size is None and start % SECTOR == 0

    async def release(self) -> bool:
        return await self._inner.release()

    def continues(self, before: Transport) -> bool | None:
        return self._inner.continues(before._inner if isinstance(before, Slice) else before)

    @property
    def whole(self) -> Transport:
        return self._inner

    @property
    def guest_size(self) -> int:
        """Of the sectors of the store, not of its bytes, as QEMU counts it."""
        return self._guest_size

    def _at(self, operation: str, offset: int, length: int) -> int:
        self.check_bounds(operation, offset, length)
        return self._start + offset

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        await self._inner.read_into(self._at("reading", offset, len(buffer)), buffer)

    async def write(self, offset: int, buffer: Buffer) -> None:
        await self._inner.write(self._at("writing", offset, len(buffer)), buffer)

    async def zero(self, offset: int, length: int) -> bool:
        return await self._inner.zero(self._at("writing", offset, length), length)

    @property
    def zeroing(self) -> str:
        return self._inner.zeroing

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        extents = await self._inner.block_status(self._at("reading block status", offset, length), length)
        return [Extent(extent.start - self._start, extent.length, extent.kind) for extent in extents]

    async def disk_size(self) -> int | None:
        return await self._inner.disk_size()

    async def fingerprint(self) -> Fingerprint:
        return await self._inner.fingerprint()

    async def known_by(self) -> Facts:
        return await self._inner.known_by()

    def claim(self, sharing: Sharing) -> bool:
        return self._inner.claim(sharing)

    async def flush(self) -> None:
        await self._inner.flush()

    async def discard(self) -> bool:
        return await self._inner.discard()

    async def close(self) -> None:
        await self._inner.close()
