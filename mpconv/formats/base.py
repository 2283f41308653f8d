"""The contract of every image: a format over one store or several; guest bytes come out."""

from __future__ import annotations

from typing import Protocol

from mpconv.model.extent import Extent
from mpconv.transports.base import Buffer, Transport


class Image(Protocol):
    """A guest disk of `size` bytes, whole sectors. Errors are those of the stores, and ImageError."""

    @property
    def size(self) -> int:
        """The guest's, in bytes."""

    @property
    def format(self) -> str:
        """Its name in qemu-img."""

    @property
    def stores(self) -> list[Transport]:
        """What the image lies in, itself first."""

    @property
    def seams(self) -> tuple[int, ...]:
        """Where one part of the image ends and the next begins."""

    def locate(self, offset: int, length: int) -> list[tuple[Transport, int, int]]:
        """(store, its byte, bytes) of the guest's bytes from `offset` on, as far as it is known without asking that
        they are stored as they are.
        """

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from guest byte `offset`."""

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """Extents from `offset` on, without gaps, covering at least one byte and at most `length`."""

    async def close(self) -> None:
        """Give all connections back."""
