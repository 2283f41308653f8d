"""`memory:NAME`: a byte store in this process, for tests and for talk between transports without a disk."""

from __future__ import annotations

from mpconv.model.errors import NoSuchImage, Retryable
from mpconv.transports.base import AS_USUAL, CLOSED, Access, Buffer, Opening, Transport, cannot_open

_stores: dict[str, bytearray] = {}


class MemoryTransport(Transport):
    """Bytes under a name; every connection to the name in this process sees the same bytes."""

    def __init__(self, url: str, store: bytearray, *, created: bool) -> None:
        self.name = url
        self.identity = ("memory", url)
        self.size = len(store)
        self.zero_initialised = created
        self._store = store
        self._created = created
        self._closed = False

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._closed:
            raise self.error(Retryable, operation, offset, CLOSED)
        super()._check(operation, offset, length)

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))
        buffer[:] = self._store[offset : offset + len(buffer)]

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))
        self._store.extend(bytes(max(0, offset - len(self._store))))
        self._store[offset : offset + len(buffer)] = buffer

    async def zero(self, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        self._store[offset : offset + length] = bytes(length)
        return True

    async def flush(self) -> None:
        self._check("flushing", None, 0)

    async def discard(self) -> bool:
        made = self._created and _stores.get(self.name) is self._store
        if made:
            del _stores[self.name]
        return made

    async def close(self) -> None:
        self._closed = True


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> MemoryTransport:
    """The store of that name, made anew with `create_size`."""
    if create_size is not None:
        _stores[url] = bytearray(create_size)
    if url not in _stores:
        raise cannot_open(url, "No such store in this process", NoSuchImage)
    store = MemoryTransport(url, _stores[url], created=create_size is not None)
    store.growing = opening.growing
    return store
