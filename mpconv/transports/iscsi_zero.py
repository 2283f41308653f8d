"""Zeros on a LUN by something cheaper than writing them: UNMAP, WRITE SAME with UNMAP, WRITE SAME, in this order.

What always holds: nothing is unmapped unless LBPRZ promises zeros; of every GiB three blocks are read back; what is
refused or leaves something else than zeros is not used again, and the next means is tried for the same range.

- UNMAP: 1 GiB a command at most. tgt counts its bytes in 32 bits, answers GOOD to 4 GiB and does nothing. A LUN may
  leave parts of its granules as they are, so these are read, and written where they are not zero.
- WRITE SAME with UNMAP: the target may write what it cannot unmap, so 128 MiB at most: four of them end within the
  60 s that a command has, from 9 MiB/s on.
- WRITE SAME: 16 MiB at most, so that four of them end in time from 1 MiB/s on, or those of sixteen connections from
  17 MiB/s on; and 32768 blocks of 512 bytes are what targets take that have a limit of 16 bits and do not say so.
  tgt writes it block by block: 280 to 600 MiB/s with blocks of 512 bytes, 1400 to 4700 with 4096, four in flight.
  Plain zeros over loopback make 290 to 650, from the same two cores; a link of 1 Gbit/s carries 115.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from msgspec import Struct

from mpconv.transports import scsi
from mpconv.transports.iscsi_commands import Commands, Refusal, Refused
from mpconv.units import GiB, MiB, align_down, align_up

_STRETCH = GiB
_LARGEST_UNMAP, _LARGEST_WRITE_SAME_UNMAP, _LARGEST_WRITE_SAME = GiB, 128 * MiB, 16 * MiB
_IN_FLIGHT = 4


class Means(Struct, frozen=True):
    """`name`: for programs; `words`: for people. `largest`: blocks in one command. `make`: its bytes and its data, for
    first block and count. `granule`: blocks that are only zeroed together, counted from block `aligned`.
    """

    name: str
    words: str
    largest: int
    make: Callable[[int, int], tuple[bytes, bytearray]]
    unmaps: bool
    granule: int = 1
    aligned: int = 0

    def core(self, lba: int, end: int) -> tuple[int, int]:
        """The whole granules among the blocks from `lba` up to `end`; (end, end) for none."""
        first = align_up(lba - self.aligned, self.granule) + self.aligned
        last = align_down(end - self.aligned, self.granule) + self.aligned
        return (first, last) if first < last else (end, end)


def means_for(block: int, reads_zeros: bool, limits: scsi.BlockLimits, provisioning: scsi.Provisioning) -> list[Means]:
    """What may be tried on a LUN with blocks of `block` bytes, the cheapest first."""
    found = []
    granule = limits.unmap_granule
    most = align_down(min(_LARGEST_UNMAP // block, limits.largest_unmap), granule)
    # Where a command cannot hold a whole granule, nothing says what it leaves.
    if reads_zeros and provisioning.unmap and limits.unmap_descriptors and most:
        found.append(
            Means(
                "unmap",
                "blocks are unmapped (UNMAP)",
                most,
                lambda lba, blocks: (scsi.unmap(24), bytearray(scsi.unmap_parameters(lba, blocks))),
                True,
                granule,
                limits.unmap_aligned % granule,
            )
        )
    zeros = bytearray(block)

    def write_same(name: str, words: str, cap: int, unmaps: bool) -> Means:
        most = min(cap // block, limits.largest_write_same or cap)
        return Means(
            name, words, most, lambda lba, blocks: (scsi.write_same16(lba, blocks, unmap=unmaps), zeros), unmaps
        )

    if reads_zeros and provisioning.write_same:
        found.append(
            write_same("write-same-unmap", "blocks are unmapped (WRITE SAME)", _LARGEST_WRITE_SAME_UNMAP, True)
        )
    found.append(
        write_same("write-same", "the target repeats a block of zeros (WRITE SAME)", _LARGEST_WRITE_SAME, False)
    )
    return found


class Zeroing:
    """The means of one connection that are left. `betrayed`: blocks were unmapped and did not read as zeros."""

    def __init__(self, lun: Commands, means: list[Means]) -> None:
        self._lun = lun
        self._means = means
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self.betrayed = False

    @property
    def words(self) -> str | None:
        """What is used, as far as is known; None when nothing is left."""
        return self._means[0].words if self._means else None

    async def zero(self, lba: int, blocks: int) -> bool:
        """False: nothing cheap works. Raises Refused when something else is wrong."""
        while self._means:
            means = self._means[0]
            try:
                if await self._by(means, lba, lba + blocks):
                    return True
                self.betrayed = self.betrayed or means.unmaps
            except Refused as refused:
                if not refused.how.unsupported:
                    raise
            if means in self._means:
                self._means.remove(means)
        return False

    async def alone(self, lba: int, blocks: int) -> bool | None:
        """By the first means and no other, and as often as it is asked. None: it is refused."""
        try:
            return await self._by(self._means[0], lba, lba + blocks)
        except Refused as refused:
            if not refused.how.unsupported:
                raise
            return None

    async def _by(self, means: Means, lba: int, end: int) -> bool:
        """Whether the samples are zeros."""
        first, last = means.core(lba, end)
        stretch = align_down(_STRETCH // self._lun.block, means.largest) or means.largest
        for start in range(first, last, stretch):
            stop = min(start + stretch, last)
            await self._run(means, start, stop)
            samples = {start, stop - 1, random.randrange(start, stop)}
            if not all(await asyncio.gather(*(self._is_zero(block) for block in samples))):
                return False
        await self._scrub(lba, first)
        await self._scrub(last, end)
        return True

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
