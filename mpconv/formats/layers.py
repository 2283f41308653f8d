"""What QEMU's block status says of an image and of the layers below it, piece by piece.

The rules are those of its bdrv_co_block_status, bdrv_co_common_block_status_above and qcow2_co_block_status.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from msgspec import Struct

from mpconv.formats.base import Image
from mpconv.formats.qcow2.entries import Held, Run
from mpconv.formats.qcow2.image import Qcow2Image
from mpconv.formats.qcow2.preallocation import metadata_preallocated
from mpconv.formats.raw import RawImage
from mpconv.model.extent import Kind
from mpconv.model.units import KiB, align_down
from mpconv.transports.base import Transport

_LARGEST_SLICE = 64 * KiB
"""QEMU looks at so many bytes of an L2 table at a time."""


class Piece(Struct, frozen=True, kw_only=True):
    """`length` guest bytes from `start`. `depth`: the layer that was asked last, 0 for the topmost.

    `present`: that layer holds it. `host`: the byte of `store` where it lies, or would. `past_backing`: left to a
    backing file that is too short. `last`: QEMU says that the image ends here.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    host: int | None = None
    store: Transport | None = None
    past_backing: bool = False
    last: bool = False

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + self.length

    @property
    def flags(self) -> tuple[bool, ...]:
        """What `qemu-img compare -s` compares."""
        allocated = self.present or self.past_backing
        return (allocated, self.zero, self.data, self.host is not None, self.last)


def pieces(
    image: Image, start: int, end: int, *, trusting: bool = True, stepwise: bool = False
) -> AsyncIterator[Piece]:
    """From guest byte `start` up to `end`, ascending, without gaps; neighbours may be alike.

    Without `trusting` no store is believed that calls data zeros. `stepwise`: no piece is longer than one that QEMU
    finds with one question.
    """
    return _Walk(trusting, stepwise).through(image, start, min(end, image.size), 0, image.size)


class _Walk:
    def __init__(self, trusting: bool, stepwise: bool) -> None:
        self._trusting = trusting
        self._stepwise = stepwise
        self._preallocated: dict[int, bool] = {}

    def through(self, image: Image, start: int, end: int, depth: int, last: int) -> AsyncIterator[Piece]:
        """`last`: a piece that ends there is the last one."""
        if isinstance(image, Qcow2Image):
            return self._qcow2(image, start, end, depth, last)
        assert isinstance(image, RawImage)
        return self._raw(image, start, end, depth, last)

    async def _raw(self, image: RawImage, start: int, end: int, depth: int, last: int) -> AsyncIterator[Piece]:
        """What pads the last sector is zeros."""
        store = image.transport
        at = start
        while at < end:
            length = min(end, store.size) - at
            if length <= 0:
                parts = [(at, end - at, Kind.ZERO)]
            elif self._trusting and image.trusting:
                parts = [(one.start, one.length, one.kind) for one in await store.block_status(at, length)]
            else:
                parts = [(at, length, Kind.DATA)]
            for place, size, kind in parts:
                yield Piece(
                    start=place,
                    length=size,
                    depth=depth,
                    present=kind is not Kind.UNALLOCATED,
                    zero=kind is Kind.ZERO,
                    data=kind is Kind.DATA,
                    host=place if kind is not Kind.UNALLOCATED else None,
                    store=store,
                    last=place + size == last,
                )
                at = place + size

    async def _qcow2(self, image: Qcow2Image, start: int, end: int, depth: int, last: int) -> AsyncIterator[Piece]:
        async for whole in image.runs(start, end):
            for run in self._steps(whole, image):
                if run.kind is Held.UNALLOCATED:
                    async for piece in self._below(image, run, depth, run.end if run.end == image.size else last):
                        yield piece
                elif run.kind is Held.DATA and await self._is_preallocated(image):
                    async for piece in self._searched(image, run, depth, last):
                        yield piece
                else:
                    yield Piece(
                        start=run.start,
                        length=run.length,
                        depth=depth,
                        present=True,
                        zero=run.kind is Held.ZERO,
                        data=run.kind is not Held.ZERO,
                        host=None if run.kind is Held.COMPRESSED else run.host,
                        store=image.data,
                        last=run.end == last,
                    )

    def _steps(self, run: Run, image: Qcow2Image) -> Iterator[Run]:
        if not self._stepwise:
            yield run
            return
        header = image.header
        entry = header.cluster_size // header.l2_entries
        step = min(_LARGEST_SLICE, header.cluster_size) // entry << header.cluster_bits
        at = run.start
        while at < run.end:
            stop = min(run.end, align_down(at, step) + step)
            host = None if run.host is None else run.host + at - run.start
            yield Run(run.kind, at, stop - at, host, run.stored)
            at = stop

    async def _below(self, image: Qcow2Image, run: Run, depth: int, last: int) -> AsyncIterator[Piece]:
        there = run.start if image.backing is None else max(run.start, min(run.end, image.backing.size))
        if image.backing is not None and there > run.start:
            async for piece in self.through(image.backing, run.start, there, depth + 1, last):
                yield piece
        if there < run.end:
            yield Piece(
                start=there,
                length=run.end - there,
                depth=depth,
                present=False,
                zero=True,
                data=False,
                host=None if run.host is None else run.host + there - run.start,
                store=image.data,
                past_backing=image.backing is not None,
                last=run.end == last,
            )

    async def _searched(self, image: Qcow2Image, run: Run, depth: int, last: int) -> AsyncIterator[Piece]:
        """Data that may be holes of the file it lies in; beyond the file's end there are only holes."""
        assert run.host is not None
        shift = run.start - run.host
        at, end = run.host, run.host + run.length
        while at < end:
            there = min(end, image.data.size) - at
            parts = [(at, end - at, True)]
            if there > 0:
                found = await image.data.block_status(at, there)
                parts = [(one.start, one.length, one.kind is not Kind.DATA) for one in found]
            for host, length, zero in parts:
                yield Piece(
                    start=host + shift,
                    length=length,
                    depth=depth,
                    present=True,
                    zero=zero,
                    data=True,
                    host=host,
                    store=image.data,
                    last=host + shift + length == last,
                )
                at = host + length

    async def _is_preallocated(self, image: Qcow2Image) -> bool:
        if not self._trusting:
            return False
        known = self._preallocated.get(id(image))
        if known is None:
            known = self._preallocated[id(image)] = await metadata_preallocated(image)
        return known


async def first_unlike(first: Image, second: Image, size: int, *, trusting: bool = True) -> int | None:
    """The first byte below `size`, both images', at which `qemu-img compare -s` finds their status to differ.
    `trusting`: as with `pieces`.
    """
    one_by_one = [pieces(image, 0, size, trusting=trusting, stepwise=True) for image in (first, second)]
    at = 0
    found: list[Piece] = []
    while at < size:
        found = found or [await anext(one) for one in one_by_one]
        found = [await anext(one) if piece.end <= at else piece for one, piece in zip(one_by_one, found, strict=True)]
        if found[0].flags != found[1].flags:
            return at
        at = min(piece.end for piece in found)
    return None
