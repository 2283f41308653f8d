"""Copies from LUN to LUN without a byte of them passing through here: EXTENDED COPY, sent to the LUN that is written.

What always holds: it is sent only where INQUIRY offers third party copies, between LUNs that have different names which
are unique in the world; any refusal ends it for the connection; of each range three blocks are compared afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import random

from mpconv.model.units import MiB
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi.commands import Commands, Refused

_LARGEST = 16 * MiB
"""One command, as one segment: far from its 60 s even at 1 MiB/s."""
_MOST_BLOCKS = 0xFFFF
_PAGE_BYTES = 252


class Copying:
    """What one LUN can copy from others."""

    def __init__(self, lun: Commands) -> None:
        self._lun = lun
        self._able: bool | None = None
        self._names: dict[Commands, bytes | None] = {}
        self._list_ids = itertools.cycle(range(256))

    async def copy(self, source: Commands, source_lba: int, lba: int, blocks: int) -> bool:
        """Blocks of one size. False: it cannot, or what came of it differs. Raises Refused for lost sessions."""
        try:
            if self._able is None:
                self._able = scsi.parse_third_party_copy(await self._lun.ask(scsi.inquiry(64), 64))
            if not self._able:
                return False
            here, there = await self._name(self._lun), await self._name(source)
            if here is None or there is None or here == there:
                return False
            most = min(_LARGEST // self._lun.block, _MOST_BLOCKS)
            for done in range(0, blocks, most):
                parameters = scsi.copy_parameters(
                    next(self._list_ids),
                    there,
                    here,
                    self._lun.block,
                    source_lba=source_lba + done,
                    lba=lba + done,
                    blocks=min(most, blocks - done),
                )
                await self._lun.tell(scsi.extended_copy(len(parameters)), bytearray(parameters))
            samples = {0, blocks - 1, random.randrange(blocks)} if blocks else set[int]()
            same = [self._same(source, source_lba + sample, lba + sample) for sample in samples]
            self._able = self._able and all(await asyncio.gather(*same))
        except Refused as refused:
            if refused.how.lost:
                raise
            self._able = False
        return self._able

    async def _name(self, lun: Commands) -> bytes | None:
        if lun not in self._names:
            self._names[lun] = scsi.parse_designator(await lun.ask(scsi.inquiry_vpd(0x83, _PAGE_BYTES), _PAGE_BYTES))
        return self._names[lun]

    async def _same(self, source: Commands, source_lba: int, lba: int) -> bool:
        block = self._lun.block
        there, here = bytearray(block), bytearray(block)
        await source.transfer(source_lba * block, memoryview(there), reads=True)
        await self._lun.transfer(lba * block, memoryview(here), reads=True)
        return there == here
