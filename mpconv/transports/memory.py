"""`memory:NAME`: a byte store in this process, for tests and for talk between transports without a disk."""

from __future__ import annotations

from mpconv.extent import Extent
from mpconv.transports.base import Access, Buffer, Transport, cannot_open

_stores: dict[str, bytearray] = {}


class MemoryTransport(Transport):
    """Bytes under a name; every connection to the name in this process sees the same bytes."""

    def __init__(self, url: str, store: bytearray, *, created: bool) -> None:
        self.name = url
        self.identity = ("memory", url)
        self.size = len(store)
        self.zero_initialised = created
        self._store = store

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        if offset + len(buffer) > self.size:
            raise cannot_open(self.name, "read beyond the end")
        buffer[:] = self._store[offset : offset + len(buffer)]

    async def write(self, offset: int, buffer: Buffer) -> None:
        if offset + len(buffer) > self.size:
            raise cannot_open(self.name, "write beyond the end")
        self._store[offset : offset + len(buffer)] = buffer

    async def zero(self, offset: int, length: int) -> bool:
        self._store[offset : offset + length] = bytes(length)
        return True

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        return [Extent(offset, length)]

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        return


async def connect(url: str, access: Access, *, create_size: int | None = None) -> MemoryTransport:
    """The store of that name, made anew with `create_size`."""
    if create_size is not None:
        _stores[url] = bytearray(create_size)
    if url not in _stores:
        raise cannot_open(url, "No such store in this process")
    return MemoryTransport(url, _stores[url], created=create_size is not None)
