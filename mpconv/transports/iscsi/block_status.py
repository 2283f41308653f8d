"""What GET LBA STATUS tells of a LUN, believed only as far as it can be true.

What always holds: of an answer that no LUN can give honestly nothing is used, and nothing is asked after it. SBC-3 has
the first descriptor begin with the block that was asked for, and each other one where the one before it ends.
"""

from __future__ import annotations

import itertools
import random
import struct

from mpconv.model.extent import Extent, Kind
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi.commands import Commands, Refused

_ANSWER_BYTES = 64 * 1024
"""4095 descriptors: tgt walks the rest of the file for each answer, however short."""
_HEADER, _DESCRIPTOR = 8, 16
_WRAP = 1 << 32
_UNMAPPED, _LAST_KNOWN = (1, 2), 4
"""Deallocated and anchored, which both read as zeros where LBPRZ says so. 0 and 3 are mapped, 4 unknown (SBC-4)."""
_MOST_CALLS = 64

Run = tuple[int, int, bool]
"""First block, blocks, and whether they are mapped or unknown."""


class Impossible(Exception):
    """An answer that cannot be true, in words."""


def runs(answer: bytes, lba: int, blocks: int) -> list[Run]:
    """What an answer tells from block `lba` on, without a gap, of a LUN that has `blocks`. Impossible when it lies.

    tgt's descriptors count in 32 bits: from a run of 2^32 blocks and more multiples of that are missing. Such a gap is
    no lie; the runs end before it. A run of no blocks, which is such a one, can only be the last.
    """
    length = struct.unpack_from(">I", answer)[0] + 4
    count, rest = divmod(length - _HEADER, _DESCRIPTOR)
    if rest:
        raise Impossible(f"an answer of {length} bytes is no list")
    if count < 1:
        raise Impossible(f"it names no blocks from block {lba} on")
    found: list[Run] = []
    at, wrapped, empty = lba, False, False
    for number in range(min(count, (len(answer) - _HEADER) // _DESCRIPTOR)):
        first, some, state = struct.unpack_from(">QIB", answer, _HEADER + number * _DESCRIPTOR)
        gap = first - at
        if gap and (not number or gap < 0 or gap % _WRAP):
            raise Impossible(f"it names block {first} where block {at} comes next")
        if empty and not gap:
            raise Impossible(f"it names none of the blocks at block {at}")
        if first + some > blocks:
            raise Impossible(f"it names block {first + some - 1} of {blocks} blocks")
        if state & 0x0F > _LAST_KNOWN:
            raise Impossible(f"it gives block {first} the status {state & 0x0F}, which is none")
        wrapped = wrapped or gap > 0
        if not wrapped:
            found.append((first, some, state & 0x0F not in _UNMAPPED))
        at, empty = first + some, not some
    if empty and blocks - at < _WRAP:
        raise Impossible(f"it names none of the blocks at block {at}")
    return found


class LbaStatus:
    """What one LUN of `blocks` blocks tells. `told`: whether it is asked; no more once it is refused, or lies."""

    def __init__(self, lun: Commands, blocks: int, *, told: bool) -> None:
        self._lun = lun
        self._blocks = blocks
        self.told = told
        self._answered = False

    async def runs(self, lba: int) -> list[Run]:
        """From block `lba` on, without a gap and each of some blocks; none when it is not told. Raises Impossible, and
        Refused for a lost session or a target that only puts it off.
        """
        found = await self._ask(lba)
        if found and not found[0][1]:
            following = await self._ask(lba + 1)
            found = [(lba, 1, True), *following] if following and following[0][1] else []
        return [run for run in found if run[1]]

    async def _ask(self, lba: int) -> list[Run]:
        if not self.told:
            return []
        try:
            answer = await self._lun.ask(scsi.get_lba_status(lba, _ANSWER_BYTES), _ANSWER_BYTES)
            found = runs(answer, lba, self._blocks)
        except Refused as refused:
            if refused.how.lost or refused.how.put_off:
                raise
            self.told = False
            if self._answered and refused.how.ascq == scsi.BEYOND_THE_END:
                raise Impossible(f"block {lba} of {self._blocks} is beyond its end") from None
            return []
        except Impossible:
            self.told = False
            raise
        self._answered = True
        return found

    async def mapped(self, lba: int, end: int) -> list[tuple[int, int]] | None:
        """The parts (first block, end) of a range that are not known to be unmapped; None: nothing is known. Raises
        Refused as `runs`.
        """
        try:
            left = await self._mapped(lba, end)
            if left is not None and not await self._tells_again(_between(left, lba, end)):
                self.told, left = False, None
        except Impossible:
            return None
        return left

    async def _mapped(self, lba: int, end: int) -> list[tuple[int, int]] | None:
        left: list[tuple[int, int]] = []
        for _ in range(_MOST_CALLS):
            found = await self.runs(lba)
            if not found:
                return None
            for first, some, mapped in found:
                stop = min(first + some, end)
                if first >= end:
                    return left
                if mapped:
                    start = left.pop()[0] if left and left[-1][1] == first else first
                    left.append((start, stop))
                lba = stop
            if lba >= end:
                return left
        return None

    async def _tells_again(self, unmapped: list[tuple[int, int]]) -> bool:
        """Whether these blocks are unmapped when another one of them is asked for first: at block 0 answers in any unit
        look alike, and a target may tell now this and now that. Raises as `runs`.
        """
        if not unmapped:
            return True
        [(start, end)] = random.choices(unmapped, [stop - first for first, stop in unmapped])
        at = random.randrange(max(start, 1), end) if end > 1 else self._blocks - 1
        found = await self.runs(at)
        return bool(found) and not (at < end and any(mapped and first < end for first, _, mapped in found))


def _between(parts: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """What of the range is in none of the parts, which are ascending."""
    edges = [start, *itertools.chain.from_iterable(parts), end]
    return [(first, stop) for first, stop in zip(edges[::2], edges[1::2], strict=True) if first < stop]


def extents(told: list[Run], offset: int, end: int, block: int) -> list[Extent]:
    """The bytes from `offset`, in the first run, up to `end`, as far as the runs reach."""
    found: list[Extent] = []
    for first, some, mapped in told:
        stop = min(end, (first + some) * block)
        if stop > offset:
            found.append(Extent(offset, stop - offset, Kind.DATA if mapped else Kind.ZERO))
            offset = stop
    return found


def split_holes(found: list[Extent]) -> bool:
    """Whether one hole follows another. SBC-4 allows it, yet who keeps a map of data and holes tells the two as one."""
    return any(one.kind is other.kind is Kind.ZERO for one, other in itertools.pairwise(found))
