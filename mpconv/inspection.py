"""What can be told of an image without copying it: its size, where its data lies, how much room a copy takes.

All of it as qemu-img 7.2 prints it, to the byte; lines come without their ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from mpconv.errors import StatusWithdrawn
from mpconv.extent import Extent, Kind, merged
from mpconv.formats.image import Image
from mpconv.transports import module_of
from mpconv.units import SECTOR, align_up

_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|.)|\x7f")


def size_text(size: int) -> str:
    """Three digits and a unit, "977 KiB"; from 1000 of one unit on it is the next."""
    unit = max(0, math.frexp(size * 1.024)[1] - 1) // 10
    return f"{size / (1 << 10 * unit):.3g} {_UNITS[unit]}B"


def json_text(value: object) -> str:
    """JSON as QEMU writes it: ASCII, four spaces, hexadecimal digits in capitals."""

    def escape(match: re.Match[str]) -> str:
        if match[0] == "\x7f":
            return "\\u007F"
        return match[0] if match[1] is None else f"\\u{match[1].upper()}"

    return _ESCAPE.sub(escape, json.dumps(value, indent=4))


@dataclass(frozen=True, slots=True)
class Info:
    """`size`: the guest's; `disk_size`: what it takes up where it lies, None when nobody tells. Bytes.

    `flagged`: whether QEMU's driver for the store says that a raw image is not dirty; those of nfs: and null: do not.
    """

    name: str
    size: int
    disk_size: int | None
    flagged: bool
    format: str = "raw"

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"image: {self.name}"
        yield f"file format: {self.format}"
        yield f"virtual size: {size_text(self.size)} ({self.size} bytes)"
        yield f"disk size: {'unavailable' if self.disk_size is None else size_text(self.disk_size)}"

    def facts(self) -> dict[str, object]:
        """For programs. Bytes of the name that are no UTF-8 become U+FFFD."""
        name = self.name.encode(errors="surrogateescape").decode(errors="replace")
        facts: dict[str, object] = {"virtual-size": self.size, "filename": name, "format": self.format}
        if self.disk_size is not None:
            facts["actual-size"] = self.disk_size
        return {**facts, "dirty-flag": False} if self.flagged else facts


def shown_name(image: Image) -> str:
    """The image's name without credentials; a local file's without `file:`."""
    return image.stores[0].name.removeprefix("file:")


async def info(image: Image) -> Info:
    """About an image at one place."""
    store = image.stores[0]
    flagged = module_of(store.name).rpartition(".")[2] in {"file", "iscsi"}
    return Info(shown_name(image), image.size, await store.disk_size(), flagged)


async def block_map(image: Image, start: int, length: int | None, warn: Callable[[str], None]) -> list[Extent]:
    """What lies from guest byte `start` on, neighbours of one kind joined. What pads the last sector is zeros.

    A store that calls data zeros is not believed: then all that it holds is data.
    """
    end = image.size if length is None else min(image.size, start + length)
    try:
        found = [extent async for extent in _status(image, start, end, trusting=True)]
    except StatusWithdrawn as error:
        warn(f"{error}: all of it is shown as data")
        found = [extent async for extent in _status(image, start, end, trusting=False)]
    return list(merged(found))


async def _status(image: Image, start: int, end: int, *, trusting: bool) -> AsyncIterator[Extent]:
    at = start
    while at < end:
        located = image.locate(at, end - at)
        if not located:
            yield Extent(at, end - at, Kind.ZERO)
            return
        store, offset, stored = located[0]
        extents = await store.block_status(offset, stored) if trusting else [Extent(offset, stored)]
        for extent in extents:
            yield Extent(at + extent.start - offset, extent.length, extent.kind)
        at += extents[-1].end - offset


def map_lines(extents: list[Extent], name: str, shift: int) -> Iterator[str]:
    """Where data lies, for people. `shift`: the byte of the store `name` at which the image begins."""
    yield f"{'Offset':16}{'Length':16}{'Mapped to':16}File"
    for extent in extents:
        if extent.kind is Kind.DATA:
            yield "".join(f"{_hex(n):16}" for n in (extent.start, extent.length, extent.start + shift)) + name


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"


def map_json(extents: list[Extent], start: int, shift: int) -> Iterator[str]:
    """All of it, for programs; one entry without bytes at `start` when there is nothing."""
    entries = [(extent.start, extent.length, extent.kind) for extent in extents] or [(start, 0, Kind.UNALLOCATED)]
    for number, (at, length, kind) in enumerate(entries, 1):
        present, zero, data = (_word(kind in kinds) for kinds in (_PRESENT, (Kind.ZERO,), (Kind.DATA,)))
        offset = f', "offset": {at + shift}' if kind in _PRESENT else ""
        yield (
            f'{"[" if number == 1 else ""}{{ "start": {at}, "length": {length}, "depth": 0, "present": {present}, '
            f'"zero": {zero}, "data": {data}{offset}}}{"]" if number == len(entries) else ","}'
        )


_PRESENT = (Kind.DATA, Kind.ZERO)


def _word(truth: bool) -> str:
    return "true" if truth else "false"


@dataclass(frozen=True, slots=True)
class Measure:
    """Room for a raw image of `size` bytes."""

    size: int

    @property
    def required(self) -> int:
        """Whole sectors. A raw image takes the same whatever is in it."""
        return align_up(self.size, SECTOR)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"required size: {self.required}"
        yield f"fully allocated size: {self.required}"

    def facts(self) -> dict[str, object]:
        """For programs."""
        return {"required": self.required, "fully-allocated": self.required}
