"""`null:` reads zeros (`null:?size=2G`) and, as a target, swallows writes of any size."""

from __future__ import annotations

from urllib.parse import parse_qs

from mpconv.model.errors import Retryable
from mpconv.model.units import MiB, parse_size
from mpconv.transports.base import AS_USUAL, CLOSED, Access, Buffer, Limits, Opening, Transport, cannot_open

_ZEROS = bytes(MiB)


class NullTransport(Transport):
    """Nothing is kept."""

    limits = Limits(largest_read=16 * MiB, largest_write=16 * MiB)
    fixed_size = False
    creatable = False

    def __init__(self, url: str, size: int) -> None:
        self.name = url
        self.identity = ("null", object())
        self.size = size
        self._closed = False

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._closed:
            raise self.error(Retryable, operation, offset, CLOSED)
        if operation != "writing":
            super()._check(operation, offset, length)

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))
        for start in range(0, len(buffer), MiB):
            piece = buffer[start : start + MiB]
            piece[:] = _ZEROS[: len(piece)]

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))

    async def zero(self, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        return True

    async def flush(self) -> None:
        self._check("flushing", None, 0)

    async def close(self) -> None:
        self._closed = True


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> NullTransport:
    """Size from the URL's `size=`; 0 without one."""
    query = url.partition("?")[2]
    values = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(values) - {"size"})
    if unknown:
        raise cannot_open(url, f"unknown parameter '{unknown[0]}'")
    try:
        size = parse_size(values["size"][-1]) if "size" in values else 0
    except ValueError as error:
        raise cannot_open(url, str(error)) from error
    return NullTransport(url, size)
