"""Zeros on a LUN by something cheaper than writing them: WRITE SAME with UNMAP, UNMAP, WRITE SAME, in this order.

What always holds: nothing is unmapped unless LBPRZ promises zeros; what is refused, or leaves something else than
zeros, is not used again, and the next means is tried for the same range.

- WRITE SAME with UNMAP: SBC has the target write what it does not unmap, so that zeros are there either way. Because it
  may write, 128 MiB at most: four of them end within the 60 s that a command has, from 9 MiB/s on.
- UNMAP is a hint: a target may leave any part of it as it is, and answer GOOD. So it is sent only where WRITE SAME
  cannot unmap, and counts only for blocks that GET LBA STATUS tells to be unmapped afterwards, also when it is asked
  from another block on; the others are made zeros by what comes after it. 1 GiB at most: tgt counts its bytes in 32
  bits, answers GOOD to 4 GiB and does nothing.
- WRITE SAME: 16 MiB at most, so that four of them end in time from 1 MiB/s on, or those of sixteen connections from
  17 MiB/s on; and 32768 blocks of 512 bytes are what targets take that have a limit of 16 bits and do not say so.
  tgt writes it block by block: 280 to 600 MiB/s with blocks of 512 bytes, 1400 to 4700 with 4096, four in flight.
  Plain zeros over loopback make 290 to 650, from the same two cores; a link of 1 Gbit/s carries 115.

A refusal of a command's fields may be one of its length, for a limit that is not told (LIO's is 4096 blocks on a thick
LUN): then a shorter one is tried. Of every GiB three blocks are read back, whatever was sent: that proves nothing, and
finds targets that do nothing at all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from mpconv.model.units import GiB, MiB, align_down, align_up
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi.block_status import LbaStatus
from mpconv.transports.iscsi.commands import Commands, Refusal, Refused

_STRETCH = GiB
_LARGEST_UNMAP, _LARGEST_WRITE_SAME_UNMAP, _LARGEST_WRITE_SAME = GiB, 128 * MiB, 16 * MiB
_MOST_BLOCKS10 = 0xFFFF
_FIRST_BLOCKS10 = 1 << 32
_SHORTER = 8
_IN_FLIGHT = 4


class Means(Struct, frozen=True):
    """`name`: for programs; `words`: for people. `largest`: blocks in one command. `make`: its bytes and its data, for
    first block and count. `hint`: nothing is promised of what it leaves. `granule`: blocks that are only zeroed
    together, counted from block `aligned`.
    """

    name: str
    words: str
    largest: int
    make: Callable[[int, int], tuple[bytes, bytearray]]
    unmaps: bool
    hint: bool = False
    granule: int = 1
    aligned: int = 0

    def core(self, lba: int, end: int) -> tuple[int, int]:
        """The whole granules among the blocks from `lba` up to `end`; (end, end) for none."""
        first = align_up(lba - self.aligned, self.granule) + self.aligned
        last = align_down(end - self.aligned, self.granule) + self.aligned
        return (first, last) if first < last else (end, end)

    def shorter(self, blocks: int) -> Means | None:
        """The same with shorter commands, where one of so many blocks was refused."""
        most = align_down(min(blocks, self.largest) // _SHORTER, self.granule)
        return replace(self, largest=most) if most > 1 else None


def means_for(
    capacity: scsi.Capacity, reads_zeros: bool, limits: scsi.BlockLimits, provisioning: scsi.Provisioning
) -> list[Means]:
    """What may be tried on a LUN, the best first. `reads_zeros`: blocks that are unmapped are promised to."""
    block, found = capacity.block_size, list[Means]()
    zeros = bytearray(block)

    def write_same(name: str, words: str, cap: int, *, unmaps: bool, short: bool) -> None:
        command, fits = scsi.write_same16, cap // block
        if short:
            command, fits = scsi.write_same10, min(fits, _MOST_BLOCKS10)
        most = min(fits, limits.largest_write_same or fits)
        if not short or capacity.blocks <= _FIRST_BLOCKS10:
            found.append(
                Means(name, words, most, lambda lba, blocks: (command(lba, blocks, unmap=unmaps), zeros), unmaps)
            )

    if reads_zeros and (provisioning.write_same or provisioning.write_same10):
        words, short = "blocks are unmapped (WRITE SAME)", not provisioning.write_same
        write_same("write-same-unmap", words, _LARGEST_WRITE_SAME_UNMAP, unmaps=True, short=short)
    granule = limits.unmap_granule
    most = align_down(min(_LARGEST_UNMAP // block, limits.largest_unmap), granule)
    # Where a command cannot hold a whole granule, nothing says what it leaves.
    if reads_zeros and provisioning.unmap and limits.unmap_descriptors and most:
        found.append(
            Means(
                "unmap",
                "blocks are unmapped (UNMAP, proved by GET LBA STATUS)",
                most,
                lambda lba, blocks: (scsi.unmap(24), bytearray(scsi.unmap_parameters(lba, blocks))),
                True,
                True,
                granule,
                limits.unmap_aligned % granule,
            )
        )
    words = "the target repeats a block of zeros (WRITE SAME)"
    write_same("write-same", words, _LARGEST_WRITE_SAME, unmaps=False, short=False)
    write_same("write-same-10", words, _LARGEST_WRITE_SAME, unmaps=False, short=True)
    return found


class Zeroing:
    """The means of one connection that are left. `betrayed`: blocks were unmapped and did not read as zeros."""

    def __init__(self, lun: Commands, means: list[Means], status: LbaStatus) -> None:
        self._lun = lun
        self._means = means
        self._status = status
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self.betrayed = False

    @property
    def words(self) -> str | None:
        """What is used, as far as is known; None when nothing is left."""
        return self._means[0].words if self._means else None

    async def zero(self, lba: int, blocks: int) -> bool:
        """False: nothing cheap works. Raises Refused when something else is wrong."""
        return await self._zero(lba, lba + blocks, hints=True)

    async def _zero(self, lba: int, end: int, *, hints: bool) -> bool:
        while usable := [means for means in self._means if hints or not means.hint]:
            means, shorter = usable[0], None
            try:
                if await self._by(means, lba, end):
                    return True
            except Refused as refused:
                if not refused.how.unsupported:
                    raise
                if refused.how.ascq in (scsi.INVALID_CDB, scsi.INVALID_LIST):
                    shorter = means.shorter(end - lba)
            if means in self._means:  # and not removed meanwhile, for another range
                place = self._means.index(means)
                self._means[place : place + 1] = [shorter] if shorter is not None else []
        return False

    async def alone(self, lba: int, blocks: int) -> bool | None:
        """By the first means and no other, whatever it leaves, and as often as it is asked. None: it is refused."""
        means, end = self._means[0], lba + blocks
        first, last = means.core(lba, end)
        try:
            await self._run(means, first, last)
            await self._scrub(lba, first)
            await self._scrub(last, end)
        except Refused as refused:
            if not refused.how.unsupported:
                raise
            return None
        return first == last or await self._looks_zero(first, last)

    async def _by(self, means: Means, lba: int, end: int) -> bool:
        """Whether the range is zeros, by what is promised or told of it."""
        first, last = means.core(lba, end)
        stretch = align_down(_STRETCH // self._lun.block, means.largest) or means.largest
        for start in range(first, last, stretch):
            stop = min(start + stretch, last)
            await self._run(means, start, stop)
            if means.hint and not await self._completed(start, stop):
                return False
            if not await self._looks_zero(start, stop):
                self.betrayed = self.betrayed or means.unmaps
                return False
        await self._scrub(lba, first)
        await self._scrub(last, end)
        return True

    async def _completed(self, lba: int, end: int) -> bool:
        """Zeros where blocks are not told to be unmapped. False: nothing is told."""
        left = await self._status.mapped(lba, end)
        for start, stop in left or ():
            small = (stop - start) * self._lun.block <= self._lun.piece
            if small or not await self._zero(start, stop, hints=False):
                await self._scrub(start, stop)
        return left is not None

    async def _run(self, means: Means, lba: int, end: int) -> None:
        """A range by as many commands as it takes, a few of them in flight; all have ended when it raises."""
        starts = iter(range(lba, end, means.largest))
        refusals = list[Refusal]()

        async def some() -> None:
            for start in starts:
                async with self._slots:
                    if refusals:
                        return
                    cdb, data = means.make(start, min(means.largest, end - start))
                    try:
                        await self._lun.tell(cdb, data, at=start * self._lun.block)
                    except Refused as refused:
                        refusals.append(refused.how)

        await asyncio.gather(*(some() for _ in range(_IN_FLIGHT)))
        if refusals:
            raise Refused(min(refusals, key=lambda refusal: refusal.unsupported))

    async def _looks_zero(self, lba: int, end: int) -> bool:
        """Whether samples are zeros."""
        samples = {lba, end - 1, random.randrange(lba, end)}
        return all(await asyncio.gather(*(self._is_zero(block) for block in samples)))

    async def _is_zero(self, block: int) -> bool:
        sample = bytearray(self._lun.block)
        await self._lun.transfer(block * self._lun.block, memoryview(sample), reads=True)
        return sample == bytes(self._lun.block)

    async def _scrub(self, lba: int, end: int) -> None:
        """Write zeros to those pieces of a range that hold something else."""
        for offset in range(lba * self._lun.block, end * self._lun.block, self._lun.piece):
            piece = bytearray(min(self._lun.piece, end * self._lun.block - offset))
            await self._lun.transfer(offset, memoryview(piece), reads=True)
            if piece != bytes(len(piece)):
                await self._lun.transfer(offset, memoryview(bytes(len(piece))), reads=False)
