"""Reading a source that has bad places: what cannot be read becomes zeros, sector by sector (`--salvage`)."""

from __future__ import annotations

from mpconv.formats.base import Image
from mpconv.model.errors import Fatal, Gone
from mpconv.model.units import SECTOR, align_down

Lost = dict[str, list[tuple[int, int]]]
"""Why -> the ranges (start, length) of guest bytes, ascending, neighbours joined."""


async def read_what_can_be(source: Image, offset: int, buffer: memoryview) -> Lost:
    """Fill `buffer` from guest byte `offset`; what was lost. Raises what is no bad place: a lost connection, say.

    A range that fails is halved until a sector is left. So few requests find the bad sectors. The lost ones are those
    that `qemu-img convert --salvage` loses, which reads each sector by itself.
    """
    lost: Lost = {}
    await _read(source, offset, buffer, lost)
    return lost


async def _read(source: Image, offset: int, buffer: memoryview, lost: Lost) -> None:
    try:
        await source.read_into(offset, buffer)
        return
    except Gone:
        raise
    except Fatal as error:
        if len(buffer) <= SECTOR:
            buffer[:] = bytes(len(buffer))
            _add(lost, error.why, offset, len(buffer))
            return
    half = align_down(len(buffer) // 2, SECTOR) or SECTOR
    await _read(source, offset, buffer[:half], lost)
    await _read(source, offset + half, buffer[half:], lost)


def _add(lost: Lost, why: str, offset: int, length: int) -> None:
    ranges = lost.setdefault(why, [])
    if ranges and sum(ranges[-1]) == offset:
        start, before = ranges.pop()
        offset, length = start, before + length
    ranges.append((offset, length))
