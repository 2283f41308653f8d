"""iSCSI by libiscsi, in user space: one LUN as a store of bytes.

Commands and their refusals are in commands.py, zeros in zeroing.py, its map in block_status.py, copies
from LUN to LUN in offload.py. Ranges that do not end between blocks are padded: reads into a buffer of our own,
writes around what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import mmap
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

from msgspec import Struct

from mpconv.model.errors import Absent, Fatal, Gone, NoSpace, Retryable, StatusWithdrawn, Unreachable, UsageError
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import MiB, align_down, align_up
from mpconv.transports.base import AS_USUAL, Access, Buffer, Fingerprint, Limits, Opening, Transport, cannot_open
from mpconv.transports.identity import Designators, Disk, Facts
from mpconv.transports.iscsi import identity as iscsi_identity
from mpconv.transports.iscsi import resets as iscsi_resets
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi.block_status import Impossible, LbaStatus, extents, split_holes
from mpconv.transports.iscsi.commands import PIECE, Commands, Refused
from mpconv.transports.iscsi.login import Address, Session, login, parse
from mpconv.transports.iscsi.offload import Copying
from mpconv.transports.iscsi.zeroing import Means, Zeroing, means_for
from mpconv.transports.native import libiscsi
from mpconv.transports.sampling import places

_T = TypeVar("_T")
_SAMPLES, _MANY_SAMPLES = 8, 64
"""Places in what an answer calls unmapped that are read before it is believed; 64 of 4 KiB take about 6 ms."""
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, PIECE
_LOOKS = 8
"""When it is opened: so often it is asked again what it is because there was news meanwhile."""
_LARGEST_OPTIMAL = 16 * MiB


class Traits(Struct, frozen=True):
    """What a LUN tells of itself. `product`: vendor, model, revision; `means`: of making zeros, the cheapest first."""

    product: str = ""
    capacity: scsi.Capacity = scsi.Capacity(0, 512, False, False)
    limits: scsi.BlockLimits = scsi.BlockLimits()
    provisioning: scsi.Provisioning = scsi.Provisioning()
    means: tuple[Means, ...] = ()


class IscsiTransport(Transport):
    """One session and one LUN. `designators`: by what it is known, as it told when it was opened."""

    creatable = False
    ordered = copy_may_spoil = True

    def __init__(self, address: Address, session: Session, patience: float) -> None:
        self.name = address.name
        self._address = address
        self._patience = patience
        self._commands = Commands(session, address.wire_lun, patience)
        self._status = LbaStatus(self._commands, 0, told=False)
        self._zeroing = Zeroing(self._commands, [], self._status)
        self._sampled = False
        self.traits = Traits()
        self.designators = Designators()
        self._copying = Copying(self._commands)
        self._part_blocks, self._one_by_one = asyncio.Lock(), asyncio.Lock()
        # Not by the LUN's own designator (VPD page 83), which `known_by` tells: tgt makes it of target and LUN numbers,
        # so that those of different servers are the same.
        self.identity = ("iscsi", *self._commands.peer, address.target.lower(), address.lun)

    async def discover(self, access: Access) -> None:
        """Ask the LUN what it is: a disk, its size, block length and limits. Fatal for what cannot be used."""
        told = await self._get_ready()
        news = -1
        for _ in range(_LOOKS):
            if news == self._commands.news:
                break
            news = self._commands.news
            await self._describe(told, access)
        self._commands.look = partial(self._look_again, access)

    async def _get_ready(self) -> bytes:
        """What INQUIRY tells of a disk that is ready. Absent or Unreachable when it may be ready later."""
        ready = self._commands.tell(scsi.test_unit_ready())
        answers = await asyncio.gather(ready, self._commands.ask(scsi.inquiry(64), 64), return_exceptions=True)
        if isinstance(answers[1], bytes):
            other = scsi.not_a_disk(answers[1])
            if other is not None:
                raise (Absent if other == scsi.NO_SUCH_LUN else UsageError)(other)
        with self._explained("asking for the kind of device"):
            for answer in answers:
                if isinstance(answer, Refused) and not answer.how.lost and not answer.how.passing:
                    absent, later = answer.how.ascq == scsi.NO_LUN, answer.how.key == scsi.NOT_READY
                    raise (Absent if absent else Unreachable if later else Fatal)(str(answer))
                if isinstance(answer, BaseException):
                    raise answer
        assert isinstance(answers[1], bytes)
        return answers[1]

    async def _describe(self, told: bytes, access: Access) -> None:
        ask, ask_if_known = self._commands.ask, self._commands.ask_if_known
        clock = asyncio.get_running_loop().time
        started = clock()
        with self._explained("reading the capacity"):
            capacity = scsi.parse_capacity(await ask(scsi.read_capacity16(32), 32))
        self.round_trip = clock() - started
        block = self._block = self._commands.block = capacity.block_size
        if not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK or block & (block - 1):
            raise UsageError(
                f"its blocks of {block} bytes are not supported: only powers of two from 512 bytes to 1 MiB"
            )
        self.size = capacity.blocks * block
        with self._explained("asking for limits"):
            mode, told_limits, told_provisioning, self.designators = await asyncio.gather(
                ask_if_known(scsi.mode_sense6(192), 192),
                ask_if_known(scsi.inquiry_vpd(0xB0, 64), 64),
                ask_if_known(scsi.inquiry_vpd(0xB2, 64), 64),
                iscsi_identity.read(ask_if_known),
            )
        if access is Access.WRITE and scsi.parse_write_protected(mode):
            raise UsageError("the LUN is write protected: take that off on the target, or name another")
        limits = scsi.parse_block_limits(told_limits)
        own = ", ".join(sorted(self.designators.worldwide or self.designators.told))
        self.marks = {"its block size": str(block)} | ({"its designators": own} if own else {})
        provisioning = scsi.parse_provisioning(told_provisioning)
        promised = _promises_zeros(capacity, provisioning)
        means = means_for(capacity, promised, limits, provisioning)
        self.traits = Traits(scsi.parse_product(told), capacity, limits, provisioning, tuple(means))
        self._status = LbaStatus(self._commands, capacity.blocks, told=promised)
        self._zeroing = Zeroing(self._commands, means, self._status)
        most = self._commands.piece = align_down(min(limits.largest_transfer * block or PIECE, PIECE), block)
        optimal = min(limits.optimal_transfer * block, _LARGEST_OPTIMAL)
        self.rewrites = block
        self.limits = Limits(alignment=block, largest_read=most, largest_write=most, optimal_write=optimal)

    async def _look_again(self, access: Access) -> None:
        """After news: Gone when the LUN is not what it was."""
        ask, ask_if_known = (partial(one, heeds=False) for one in (self._commands.ask, self._commands.ask_if_known))
        found, mode, told_provisioning, named = await asyncio.gather(
            ask(scsi.read_capacity16(32), 32),
            ask_if_known(scsi.mode_sense6(192), 192),
            ask_if_known(scsi.inquiry_vpd(0xB2, 64), 64),
            iscsi_identity.read(ask_if_known),
        )
        was, now = self.traits.capacity, scsi.parse_capacity(found)
        why = None
        if named.same(self.designators) is False:
            why = "another LUN has come in its place"
        elif (was.blocks, was.block_size) != (now.blocks, now.block_size):
            sizes = f"{was.blocks * was.block_size} to {now.blocks * now.block_size} bytes"
            why = f"the LUN has changed its size from {sizes}, in blocks of {now.block_size}"
        elif not _promises_zeros(now, scsi.parse_provisioning(told_provisioning)) and (
            was != now or _promises_zeros(was, self.traits.provisioning)
        ):  # that it promises them now, and did not before, is no harm: tgt is told so after it has made the LUN
            why = "the LUN has changed what it promises of zeros"
        elif access is Access.WRITE and scsi.parse_write_protected(mode):
            why = "the LUN has been write protected"
        if why is not None:
            raise self.error(Gone, "looking at the LUN again", None, f"{why}: see who did that, and begin anew")

    @contextlib.contextmanager
    def _explained(self, operation: str, at: int | None = None) -> Iterator[None]:
        """Refusals become errors of this store. `at`: where the refusal itself does not know."""
        try:
            yield
        except Refused as refused:
            where = at if refused.how.at is None else refused.how.at
            if refused.how.put_off or refused.how.news:
                raise self.error(Gone, operation, where, f"{refused}, for {self._patience:g} seconds") from None
            if not refused.how.lost:
                kind = NoSpace if refused.how.full else Fatal
                raise self.error(kind, operation, where, str(refused)) from None
            raise self.error(Retryable, operation, where, self._commands.lost_why or str(refused)) from None

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._commands.over is not None:
            raise copy.copy(self._commands.over)
        if self._commands.lost_why is not None:
            raise self.error(Retryable, operation, offset, self._commands.lost_why)
        self.check_bounds(operation, offset or 0, length)

    async def _transfer(self, operation: str, offset: int, buffer: Buffer, *, reads: bool) -> None:
        with self._explained(operation):
            await self._commands.transfer(offset, buffer, reads=reads)

    def _blocks_around(self, offset: int, length: int) -> tuple[int, Buffer]:
        first, end = align_down(offset, self._block), align_up(offset + length, self._block)
        return first, memoryview(mmap.mmap(-1, end - first))

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))
        if not buffer:
            return
        if offset % self._block == 0 and len(buffer) % self._block == 0:
            await self._transfer("reading", offset, buffer, reads=True)
            return
        first, whole = self._blocks_around(offset, len(buffer))
        await self._transfer("reading", first, whole, reads=True)
        buffer[:] = whole[offset - first : offset - first + len(buffer)]

    async def _kept(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """What `work`, which writes, returns; see iscsi_resets."""
        resets = self._commands.resets
        if not resets.careful:
            resets.begins()
            try:
                return await work()
            finally:
                resets.ends()
        async with self._one_by_one:  # or the resets of all would count for each
            for _ in range(iscsi_resets.TRIES):
                heard = resets.heard
                done = await work()
                await self.flush()
                if heard == resets.heard:
                    return done
        raise self.error(Gone, "writing", None, iscsi_resets.AGAIN)

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))
        if buffer:
            await self._kept(lambda: self._write(offset, buffer))

    async def _write(self, offset: int, buffer: Buffer) -> None:
        if offset % self._block == 0 and len(buffer) % self._block == 0:
            await self._transfer("writing", offset, buffer, reads=False)
            return
        first, whole = self._blocks_around(offset, len(buffer))
        # One at a time: two writes into one block would each put back the other's old bytes.
        async with self._part_blocks:
            last = len(whole) - self._block
            await self._transfer("writing", first, whole[: self._block], reads=True)
            if last:
                await self._transfer("writing", first + last, whole[last:], reads=True)
            whole[offset - first : offset - first + len(buffer)] = buffer
            await self._transfer("writing", first, whole, reads=False)

    async def zero(self, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        first, end = align_up(offset, self._block), align_down(offset + length, self._block)
        if first >= end:
            return not length
        return await self._kept(lambda: self._zero(offset, length, first, end))

    async def _zero(self, offset: int, length: int, first: int, end: int) -> bool:
        with self._explained("writing"):
            if not await self._zeroing.zero(first // self._block, (end - first) // self._block):
                return False
        for start, stop in ((offset, first), (end, offset + length)):
            if start < stop:
                await self._write(start, memoryview(bytes(stop - start)))
        return True

    async def release(self) -> bool:
        return False

    @property
    def vague(self) -> bool:
        return not self.designators.worldwide

    def continues(self, before: Transport) -> bool | None:
        """By its designators, at whatever portal it is now. Where strangers may have the same, as tgt's do, only at the
        same one."""
        same = self.designators.same(before.designators) if isinstance(before, IscsiTransport) else False
        if same is None and self.identity == before.identity:
            return True
        return same

    @property
    def zeroing(self) -> str:
        return self._zeroing.words or super().zeroing

    @property
    def tells_status(self) -> bool:
        """Whether GET LBA STATUS is asked: where unmapped blocks are promised to be zeros, until it is refused."""
        return self._status.told

    async def zero_by(self, means: Means, offset: int, length: int) -> bool | None:
        """Zeros in whole blocks by one of its `traits.means` alone. None: the target refuses it; False: it said that it
        was done, and samples are no zeros.
        """
        self._check("writing", offset, length)
        with self._explained("writing", offset):
            return await Zeroing(self._commands, [means], self._status).alone(
                offset // self._block, length // self._block
            )

    async def copy_from(self, source: Transport, source_offset: int, offset: int, length: int) -> bool:
        self._check("writing", offset, length)
        source = source.origin
        if not isinstance(source, IscsiTransport):
            return False
        source._check("reading", source_offset, length)
        if source._block != self._block or any(place % self._block for place in (source_offset, offset, length)):
            return False
        places = [place // self._block for place in (source_offset, offset, length)]

        async def copy() -> bool:
            with self._explained("writing", offset):
                return await self._copying.copy(source._commands, *places)

        return await self._kept(copy)

    async def fingerprint(self) -> Fingerprint:
        """What the LUN calls itself. Nothing tells whether its bytes were changed."""
        self._check("asking what LUN it is", None, 0)
        with self._explained("asking what LUN it is"):
            named = await iscsi_identity.read(self._commands.ask_if_known)
        same = {
            "its block size": str(self._block),
            "its serial number": named.serial,
            "its designators": ", ".join(named.told),
        }
        return Fingerprint(same, {"its size": str(self.size)})

    async def known_by(self) -> Facts:
        """As it was told when it was opened."""
        disk = Disk(
            self.size,
            self.designators,
            peer=self._commands.peer[0],
            target=self._address.target.lower(),
            lun=self._address.lun,
            here=self._commands.here,
        )
        return Facts(self.identity, disk=disk, size=self.size)

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self._check("reading block status", offset, length)
        if not length:
            return []
        if not self._status.told or self._zeroing.betrayed:
            return [Extent(offset, length)]
        try:
            with self._explained("reading block status", offset):
                told = await self._status.runs(offset // self._block)
            found = extents(told, offset, offset + length, self._block)
            await self._check_zeros([extent for extent in found if extent.kind is Kind.ZERO], odd=split_holes(found))
        except Impossible as error:
            self._status.told = False
            why = f"the target's answer to GET LBA STATUS cannot be true ({error})"
            raise self.error(StatusWithdrawn, "reading block status", offset, why) from None
        return found or [Extent(offset, length)]

    async def _check_zeros(self, zeros: list[Extent], *, odd: bool) -> None:
        """Impossible when there is data at some places of them: of more where an answer is odd, or is the first."""
        chosen = places(zeros, _MANY_SAMPLES if odd or not self._sampled else _SAMPLES) if zeros else []
        self._sampled = self._sampled or bool(zeros)
        for place, data in zip(chosen, await asyncio.gather(*map(self._has_data, chosen)), strict=True):
            if data:
                raise Impossible(f"there is data in the hole at byte {place.start}")

    async def _has_data(self, place: Extent) -> bool:
        """What cannot be read is no lie."""
        sample = bytearray(place.length)
        try:
            await self.read_into(place.start, memoryview(sample))
        except Gone:
            raise
        except Fatal:
            return False
        return any(sample)

    async def flush(self) -> None:
        self._check("flushing", None, 0)
        mark = self._commands.resets.mark()
        await self._flush()
        self._commands.resets.flushed(mark)

    async def _flush(self) -> None:
        for cdb in (scsi.synchronize_cache16(), scsi.synchronize_cache10()):
            with self._explained("flushing"):
                try:
                    await self._commands.tell(cdb)
                    return
                except Refused as refused:
                    if not refused.how.unsupported or refused.how.ascq != scsi.NO_COMMAND:
                        raise
        # A LUN that knows neither has no cache to write back.

    async def close(self) -> None:
        await self._commands.close()


def _promises_zeros(capacity: scsi.Capacity, provisioning: scsi.Provisioning) -> bool:
    """Whether blocks that are unmapped read as zeros."""
    return capacity.thin and capacity.zeroes and provisioning.zeroes is not False


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> IscsiTransport:
    """Log in to the LUN of `url`. A LUN cannot be made: `create_size` is only what must fit."""
    address = parse(url)
    session = await login(libiscsi.library(), address)
    try:
        transport = IscsiTransport(address, session, opening.patience)
    except OSError as error:
        session.end()
        raise cannot_open(address.name, f"the target ended the connection ({error.strerror})", Unreachable) from error
    try:
        await transport.discover(access)
    except BaseException as error:
        await transport.close()
        if isinstance(error, Retryable | Gone):
            raise cannot_open(address.name, error.why, Unreachable) from error
        if isinstance(error, Fatal):
            raise cannot_open(address.name, error.why, type(error)) from error
        raise
    return transport
