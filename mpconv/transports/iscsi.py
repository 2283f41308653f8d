"""iSCSI by libiscsi, in user space: many commands in flight on one session.

What always holds: the library does not reconnect (a reconnect would hide a target's crash and what its cache
lost); every command's status and residual are looked at; UNIT ATTENTION, BUSY and TASK SET FULL are tried again.
Zeros are unmapped only where LBPRZ promises them, at most 1 GiB at a time (tgt answers GOOD to larger ones and does
nothing), and samples are read back.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import socket
from functools import partial
from typing import Any

from mpconv.errors import Fatal, MpconvError, Retryable
from mpconv.extent import Extent, Kind
from mpconv.transports import scsi
from mpconv.transports.base import AS_USUAL, CLOSED, Access, Buffer, Limits, Opening, Transport, cannot_open
from mpconv.transports.bindings import libiscsi
from mpconv.transports.bindings.libiscsi import ffi
from mpconv.transports.iscsi_login import Address, login, logout, parse
from mpconv.transports.pump import Pump
from mpconv.transports.requests import Batch, Requests
from mpconv.units import GiB, MiB, align_down, align_up

_TRIES = 8
_STATUS_BYTES = 64 * 1024
_UNMAP_CAP = GiB
_PIECE = MiB
_SMALLEST_BLOCK, _LARGEST_BLOCK = 512, _PIECE


class _Refused(Exception):
    """A command that did not do what it should, and at which byte of the LUN. `why`: more than its status tells."""

    def __init__(self, status: int, key: int, ascq: int, at: int | None, why: str = "") -> None:
        super().__init__(why or scsi.words(status, key, ascq))
        self.status, self.key, self.ascq, self.at = status, key, ascq, at

    @property
    def passing(self) -> bool:
        """Whether the same command may succeed a moment later on the same session."""
        return self.status in (scsi.BUSY, scsi.TASK_SET_FULL) or (
            self.status == scsi.CHECK_CONDITION and self.key == scsi.UNIT_ATTENTION
        )

    @property
    def lost(self) -> bool:
        """Whether only a new connection can help."""
        return self.status in (scsi.CANCELLED, scsi.FAILED, scsi.TIMED_OUT)


class IscsiTransport(Transport):
    """One session and one LUN."""

    creatable = False

    def __init__(self, address: Address, library: Any, context: Any) -> None:
        self.name = address.name
        self._lib = library
        self._context = context
        self._lun = address.wire_lun
        self._requests = Requests()
        self._on_answer = ffi.callback("iscsi_command_cb", self._answered)
        self._lost_why: str | None = None
        self._zeroes = self._unmaps = False
        self._part_blocks = asyncio.Lock()
        # Not by the LUN's own designator (VPD page 83): tgt makes it of target and LUN numbers, so that those of
        # different servers are the same, and a copy between two servers would be refused.
        with socket.socket(fileno=os.dup(library.iscsi_get_fd(context))) as connection:
            host, port = connection.getpeername()[:2]
        self.identity = ("iscsi", host, port, address.target.lower(), address.lun)
        self._pump = Pump(
            library.iscsi_get_fd(context),
            partial(library.iscsi_which_events, context),
            partial(library.iscsi_service, context),
            self._lost,
        )

    async def discover(self, access: Access) -> None:
        """Ask the LUN what it is: a disk, its size, block length and limits. Fatal for what cannot be used."""
        other = scsi.not_a_disk(await self._ask(scsi.inquiry(64), 64, "asking for the kind of device"))
        if other is not None:
            raise Fatal(other)
        capacity = scsi.parse_capacity(await self._ask(scsi.read_capacity16(32), 32, "reading the capacity"))
        block = self._block = capacity.block_size
        if not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK or block & (block - 1):
            raise Fatal(f"its blocks of {block} bytes are not supported: only powers of two from 512 bytes to 1 MiB")
        self.size = capacity.blocks * block
        if access is Access.WRITE:
            mode = await self._ask_if_known(scsi.mode_sense6(192), 192, "asking for write protection")
            if scsi.parse_write_protected(mode):
                raise Fatal("the LUN is write protected")
        limits = scsi.parse_block_limits(await self._ask_if_known(scsi.inquiry_vpd(0xB0, 64), 64, "asking for limits"))
        self._largest_unmap = min(_UNMAP_CAP // block, limits.largest_unmap or _UNMAP_CAP)
        self._zeroes = capacity.thin and capacity.zeroes
        if self._zeroes:
            page = await self._ask_if_known(scsi.inquiry_vpd(0xB2, 64), 64, "asking for provisioning")
            self._unmaps = scsi.parse_unmap_supported(page)
        most = align_down(min(limits.largest_transfer * block or _PIECE, _PIECE), block)
        self.limits = Limits(alignment=block, largest_read=most, largest_write=most)

    # --- commands ---------------------------------------------------------------------------------------------

    def _answered(self, context: Any, status: int, task: Any, tag: Any) -> None:
        self._requests.answered(int(ffi.cast("uintptr_t", tag)), status, ffi.cast("struct scsi_task *", task))

    def _lost(self) -> None:
        self._lost_why = "the connection to the target was lost"
        self._requests.fail_all(Retryable(self._lost_why))

    def _queue(
        self,
        batch: Batch,
        cdb: bytes,
        data: Any,
        length: int,
        refused: list[_Refused],
        *,
        reads: bool,
        at: int | None = None,
        exact: bool = False,
    ) -> None:
        """Start one command; its refusal, if any, is put into `refused`. `exact`: all of `data` must be moved."""
        if self._lost_why is not None:
            refused.append(_Refused(scsi.CANCELLED, 0, 0, at))
            return
        task = self._lib.scsi_create_task(len(cdb), cdb, 0 if not length else 1 if reads else 2, length)
        if length:
            pointer = ffi.cast("unsigned char *", data)
            add = self._lib.scsi_task_add_data_in_buffer if reads else self._lib.scsi_task_add_data_out_buffer
            if add(task, length, pointer) != 0:
                self._lib.scsi_free_scsi_task(task)
                refused.append(_Refused(scsi.FAILED, 0, 0, at, "libiscsi could not take a buffer"))
                return

        def finish(status: int, answered: Any) -> MpconvError | None:
            if status != scsi.GOOD:
                sense = ffi.new("struct scsi_sense *")
                if status == scsi.CHECK_CONDITION:
                    self._lib.scsi_task_get_status(answered, sense)
                refused.append(_Refused(status, sense.key, sense.ascq, at))
            elif exact and answered.residual_status and answered.residual:
                refused.append(_short(answered, length, reads, at))
            self._lib.scsi_free_scsi_task(answered)
            return None

        tag = self._requests.add(batch, finish, (data, task))
        started = self._lib.iscsi_scsi_command_async(
            self._context, self._lun, task, self._on_answer, ffi.NULL, ffi.cast("void *", tag)
        )
        if started != 0:
            self._requests.fail_one(tag, Retryable("libiscsi refused a command"))
        self._pump.kick()

    @staticmethod
    async def _end(batch: Batch, refused: list[_Refused], at: int | None) -> None:
        """Wait for all of it. Without an answer, the connection was lost."""
        try:
            await batch.future
        except Retryable as error:
            if not any(refusal.lost for refusal in refused):
                refused.append(_Refused(scsi.CANCELLED, 0, 0, at, str(error)))

    async def _command(
        self,
        cdb: bytes,
        data: Any,
        length: int,
        *,
        reads: bool = False,
        at: int | None = None,
        exact: bool = False,
        tried: int = 0,
    ) -> None:
        """One command, again while it is only busy. Raises _Refused."""
        for attempt in range(tried, _TRIES):
            if attempt:
                await asyncio.sleep(0 if attempt == 1 else 0.005 * 2**attempt)
            batch, refused = Batch(), list[_Refused]()
            batch.left += 1
            self._queue(batch, cdb, data, length, refused, reads=reads, at=at, exact=exact)
            batch.ended(None)
            await self._end(batch, refused, at)
            if not refused:
                return
            if not refused[0].passing or attempt == _TRIES - 1:
                raise refused[0]

    def _explain(self, refusal: _Refused, operation: str, at: int | None) -> MpconvError:
        if not refusal.lost:
            return self.error(Fatal, operation, at, str(refusal))
        return self.error(Retryable, operation, at, self._lost_why or str(refusal))

    async def _ask(self, cdb: bytes, length: int, operation: str, at: int | None = None) -> bytes:
        answer = ffi.new("unsigned char[]", length)
        try:
            await self._command(cdb, answer, length, reads=True, at=at)
        except _Refused as refusal:
            raise self._explain(refusal, operation, at) from None
        return bytes(ffi.buffer(answer))

    async def _ask_if_known(self, cdb: bytes, length: int, operation: str) -> bytes:
        """Zeros where the target refuses to tell."""
        try:
            return await self._ask(cdb, length, operation)
        except Fatal:
            return bytes(length)

    async def _transfer(self, operation: str, offset: int, buffer: Buffer, *, reads: bool) -> None:
        """Whole blocks, in pieces that are in flight together; all of them have ended when it raises."""
        block, step = self._block, self.limits.largest_read
        make = scsi.read16 if reads else scsi.write16
        batch, refused = Batch(), list[_Refused]()
        batch.left += 1  # or a piece that is refused at once would end the batch before the next one is queued
        for start in range(0, len(buffer), step):
            part = buffer[start : start + step]
            at = offset + start
            pointer = ffi.from_buffer(part, require_writable=reads)
            cdb = make(at // block, len(part) // block)
            self._queue(batch, cdb, pointer, len(part), refused, reads=reads, at=at, exact=True)
        batch.ended(None)
        await self._end(batch, refused, offset)
        if refused:
            await self._again(operation, offset, buffer, refused, make, reads=reads)

    async def _again(
        self, operation: str, offset: int, buffer: Buffer, refused: list[_Refused], make: Any, *, reads: bool
    ) -> None:
        """The pieces that were only put off, one after the other. Raises what cannot be had."""
        try:
            for refusal in refused:
                if not refusal.passing:
                    raise refusal
            for refusal in refused:
                at = refusal.at
                assert at is not None
                part = buffer[at - offset : at - offset + self.limits.largest_read]
                pointer = ffi.from_buffer(part, require_writable=reads)
                cdb = make(at // self._block, len(part) // self._block)
                await self._command(cdb, pointer, len(part), reads=reads, at=at, exact=True, tried=1)
        except _Refused as refusal:
            raise self._explain(refusal, operation, refusal.at) from None

    # --- the contract -----------------------------------------------------------------------------------------

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._lost_why is not None:
            raise self.error(Retryable, operation, offset, self._lost_why)
        self.check_bounds(operation, offset or 0, length)

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

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))
        if not buffer:
            return
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
        if not self._unmaps or offset % self._block or length % self._block:
            return False
        lba, blocks = offset // self._block, length // self._block
        while blocks:
            count, at = min(blocks, self._largest_unmap), lba * self._block
            parameters = bytearray(scsi.unmap_parameters(lba, count))
            try:
                await self._command(scsi.unmap(len(parameters)), ffi.from_buffer(parameters), len(parameters), at=at)
            except _Refused as refusal:
                if refusal.lost or refusal.key != scsi.ILLEGAL_REQUEST:
                    raise self._explain(refusal, "writing", at) from None
                self._unmaps = False
                return False
            if not await self._reads_zero(lba, count):
                self._unmaps = self._zeroes = False
                return False
            lba, blocks = lba + count, blocks - count
        return True

    async def _reads_zero(self, lba: int, blocks: int) -> bool:
        """First, last and one block between: what was unmapped reads as zeros."""
        for block in {lba, lba + blocks - 1, lba + random.randrange(blocks)}:
            sample = memoryview(bytearray(self._block))
            await self._transfer("reading", block * self._block, sample, reads=True)
            if any(sample):
                return False
        return True

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        self._check("reading block status", offset, length)
        if not length:
            return []
        if not self._zeroes:
            return [Extent(offset, length)]
        first = offset // self._block
        try:
            answer = await self._ask(
                scsi.get_lba_status(first, _STATUS_BYTES), _STATUS_BYTES, "reading block status", offset
            )
        except Fatal:
            self._zeroes = False
            return [Extent(offset, length)]
        extents: list[Extent] = []
        at, end = offset, offset + length
        for lba, blocks, mapped in scsi.parse_lba_status(answer):
            stop = min(end, (lba + blocks) * self._block)
            if lba * self._block > at or stop <= at:
                break
            extents.append(Extent(at, stop - at, Kind.DATA if mapped else Kind.ZERO))
            at = stop
        return extents or [Extent(offset, length)]

    async def flush(self) -> None:
        self._check("flushing", None, 0)
        for cdb in (scsi.synchronize_cache16(), scsi.synchronize_cache10()):
            try:
                await self._command(cdb, None, 0)
                return
            except _Refused as refusal:
                if refusal.key != scsi.ILLEGAL_REQUEST or refusal.ascq != scsi.NO_COMMAND:
                    raise self._explain(refusal, "flushing", None) from None
        # A LUN that knows neither has no cache to write back.

    async def close(self) -> None:
        if self._context is None:
            return
        self._pump.stop()
        context, self._context = self._context, None
        connected, self._lost_why = self._lost_why is None, CLOSED
        if connected and not len(self._requests):
            await logout(self._lib, context)
            return
        self._lib.iscsi_destroy_context(context)
        self._requests.fail_all(Retryable(CLOSED))


def _short(task: Any, length: int, reads: bool, at: int | None) -> _Refused:
    """A transfer whose length differs from what was asked for, though its status is good."""
    moved = length - task.residual if task.residual_status == libiscsi.UNDERFLOW else length + task.residual
    why = f"the target {'returned' if reads else 'took'} {moved} of {length} bytes"
    return _Refused(scsi.GOOD, 0, 0, at, why)


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> IscsiTransport:
    """Log in to the LUN of `url`. A LUN cannot be made: `create_size` is only what must fit."""
    address = parse(url)
    library = libiscsi.library()
    context = await login(library, address)
    try:
        transport = IscsiTransport(address, library, context)
    except OSError as error:
        library.iscsi_destroy_context(context)
        raise cannot_open(address.name, f"the target ended the connection ({error.strerror})") from error
    try:
        await transport.discover(access)
    except BaseException as error:
        await transport.close()
        if isinstance(error, MpconvError):
            raise cannot_open(address.name, error.why) from error
        raise
    return transport
