"""What was read of a store, a little of it, by which it is known again where its names do not tell."""

from __future__ import annotations

import hashlib
import random

from mpconv.transports.base import Buffer, Transport

_PLACES = 16
_BYTES = 4096
_ZEROS = bytes(_BYTES)
_KEEP = 0.05
"""How often one more replaces an older one, so that they are of all of a long copy; each costs some microseconds."""


class Seen:
    """Digests of the first 4 KiB of requests at random; zeros prove nothing, and are passed over."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}

    def add(self, offset: int, buffer: Buffer) -> None:
        """This was read there."""
        full = len(self._digests) >= _PLACES
        if full and random.random() > _KEEP:
            return
        part = bytes(buffer[:_BYTES])
        if len(part) < _BYTES or part == _ZEROS:
            return
        if full:
            del self._digests[random.choice(list(self._digests))]
        self._digests[offset] = _digest(part)

    async def again_in(self, store: Transport) -> bool:
        """Whether the store has all of it; not when there is nothing."""
        buffer = bytearray(_BYTES)
        for offset, digest in self._digests.items():
            if offset + _BYTES > store.size:
                return False
            await store.read_into(offset, memoryview(buffer))
            if _digest(buffer) != digest:
                return False
        return bool(self._digests)


def _digest(part: bytes | bytearray) -> bytes:
    return hashlib.blake2b(part, digest_size=16).digest()
