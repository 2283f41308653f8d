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
import re
import uuid
from functools import partial
from typing import Any
from urllib.parse import unquote

from mpconv.errors import Fatal, MpconvError, Retryable
from mpconv.extent import Extent, Kind
from mpconv.transports import redacted, scsi
from mpconv.transports.base import Access, Buffer, Limits, Transport, cannot_open
from mpconv.transports.bindings import libiscsi
from mpconv.transports.bindings.libiscsi import ffi
from mpconv.transports.blocking import beside
from mpconv.transports.pump import Pump
from mpconv.transports.requests import Batch, Requests
from mpconv.units import GiB, MiB, align_down, align_up

_CONNECT_SECONDS = 20
_REQUEST_SECONDS = 60
_TRIES = 8
_STATUS_BYTES = 64 * 1024
_UNMAP_CAP = GiB
_URL = re.compile(
    r"iscsi://(?:(?P<user>[^%@/]+)(?:%(?P<password>[^@]*))?@)?(?P<portal>\[[^\]]+\](?::\d+)?|[^/?]+)"
    r"/(?P<target>[^/?]+)/(?P<lun>\d+)(?:\?.*)?"
)


class _Refused(Exception):
    def __init__(self, status: int, key: int, ascq: int) -> None:
        super().__init__(scsi.words(status, key, ascq))
        self.status, self.key, self.ascq = status, key, ascq

    @property
    def passing(self) -> bool:
        """Whether the same command may succeed a moment later on the same session."""
        return self.status in (scsi.BUSY, scsi.TASK_SET_FULL) or (
            self.status == scsi.CHECK_CONDITION and self.key == scsi.UNIT_ATTENTION
        )

    @property
    def lost(self) -> bool:
        return self.status in (scsi.CANCELLED, scsi.FAILED, scsi.TIMED_OUT)


class IscsiTransport(Transport):
    """One session and one LUN."""

    def __init__(self, name: str, library: Any, context: Any, portal: str, target: str, lun: int) -> None:
        self.name = name
        self.identity = ("iscsi", portal, target, lun)
        self._lib = library
        self._context = context
        self._lun = lun
        self._requests = Requests()
        self._on_answer = ffi.callback("iscsi_command_cb", self._answered)
        self._lost_why: str | None = None
        self._unmaps = False
        self._thin = False
        self._pump = Pump(
            library.iscsi_get_fd(context),
            partial(library.iscsi_which_events, context),
            partial(library.iscsi_service, context),
            self._lost,
        )

    async def discover(self) -> None:
        """Ask the LUN for its size, block length and limits."""
        capacity = scsi.parse_capacity(await self._ask(scsi.read_capacity16(32), 32, "reading the capacity"))
        self._block = capacity.block_size
        self.size = capacity.blocks * capacity.block_size
        largest = 0
        self._largest_unmap = _UNMAP_CAP // self._block
        try:
            limits = scsi.parse_block_limits(await self._ask(scsi.inquiry_vpd(0xB0, 64), 64, "asking for limits"))
            largest = limits.largest_transfer * self._block
            self._largest_unmap = min(self._largest_unmap, limits.largest_unmap or self._largest_unmap)
        except Fatal:
            pass
        self._thin = capacity.thin
        if capacity.thin and capacity.zeroes:
            try:
                page = await self._ask(scsi.inquiry_vpd(0xB2, 64), 64, "asking for provisioning")
                self._unmaps = scsi.parse_unmap_supported(page)
            except Fatal:
                self._unmaps = False
        most = min(largest or MiB, MiB)
        self.limits = Limits(alignment=self._block, largest_read=most, largest_write=most)

    # --- commands ---------------------------------------------------------------------------------------------

    def _answered(self, context: Any, status: int, task: Any, tag: Any) -> None:
        self._requests.answered(int(ffi.cast("uintptr_t", tag)), status, ffi.cast("struct scsi_task *", task))

    def _lost(self) -> None:
        self._lost_why = "the connection to the target was lost"
        self._requests.fail_all(self.error(Retryable, "talking", None, self._lost_why))

    def _queue(
        self, batch: Batch, cdb: bytes, data: Any, length: int, *, reads: bool, refused: list[_Refused | None]
    ) -> None:
        """Start one command; its refusal, if any, is put into `refused`."""
        if self._lost_why is not None:
            raise self.error(Retryable, "talking", None, self._lost_why)
        direction = 0 if not length else 1 if reads else 2
        task = self._lib.scsi_create_task(len(cdb), cdb, direction, length)
        if not libiscsi.layout_fits(task, cdb, length):
            raise Fatal("this version of libiscsi is not known to mpconv: install libiscsi 1.18 to 1.20")
        if length:
            pointer = ffi.cast("unsigned char *", data)
            add = self._lib.scsi_task_add_data_in_buffer if reads else self._lib.scsi_task_add_data_out_buffer
            if add(task, length, pointer) != 0:
                raise MemoryError("libiscsi could not take a buffer")

        def finish(status: int, answered: Any) -> MpconvError | None:
            if status != scsi.GOOD:
                sense = ffi.new("struct scsi_sense *")
                if status == scsi.CHECK_CONDITION:
                    self._lib.scsi_task_get_status(answered, sense)
                refused.append(_Refused(status, sense.key, sense.ascq))
            elif answered.residual_status and answered.residual and data is not None and exact:
                refused.append(_Refused(scsi.FAILED, 0, 0))
            self._lib.scsi_free_scsi_task(answered)
            return None

        exact = cdb[0] in (0x88, 0x8A)
        tag = self._requests.add(batch, finish, (data, task))
        started = self._lib.iscsi_scsi_command_async(
            self._context, self._lun, task, self._on_answer, ffi.NULL, ffi.cast("void *", tag)
        )
        if started != 0:
            self._requests.fail_one(tag, self.error(Retryable, "talking", None, "libiscsi refused a command"))
        self._pump.kick()

    async def _command(self, cdb: bytes, data: Any, length: int, *, reads: bool = False) -> None:
        """One command, again while it is only busy. Raises _Refused."""
        for attempt in range(_TRIES):
            batch, refused = Batch(), list[_Refused | None]()
            self._queue(batch, cdb, data, length, reads=reads, refused=refused)
            await batch.future
            if not refused or refused[0] is None:
                return
            if not refused[0].passing or attempt == _TRIES - 1:
                raise refused[0]
            await asyncio.sleep(0 if attempt == 0 else 0.01 * 2**attempt)

    def _explain(self, refusal: _Refused, operation: str, offset: int | None) -> MpconvError:
        return self.error(Retryable if refusal.lost else Fatal, operation, offset, str(refusal))

    async def _ask(self, cdb: bytes, length: int, operation: str) -> bytes:
        answer = ffi.new("unsigned char[]", length)
        try:
            await self._command(cdb, answer, length, reads=True)
        except _Refused as refusal:
            raise self._explain(refusal, operation, None) from None
        return bytes(ffi.buffer(answer))

    async def _transfer(self, offset: int, buffer: Buffer, *, reads: bool) -> None:
        """Whole blocks, in pieces that are in flight together."""
        step = align_down(self.limits.largest_read, self._block)
        make = scsi.read16 if reads else scsi.write16

        async def piece(start: int) -> None:
            part = buffer[start : start + step]
            pointer = ffi.from_buffer(part, require_writable=reads)
            at = offset + start
            try:
                cdb = make(at // self._block, len(part) // self._block)
                await self._command(cdb, pointer, len(part), reads=reads)
            except _Refused as refusal:
                raise self._explain(refusal, "reading" if reads else "writing", at) from None

        if len(buffer) <= step:
            await piece(0)
            return
        results = await asyncio.gather(*(piece(start) for start in range(0, len(buffer), step)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # --- the contract -----------------------------------------------------------------------------------------

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        first, end = align_down(offset, self._block), align_up(offset + len(buffer), self._block)
        if (first, end) == (offset, offset + len(buffer)):
            await self._transfer(offset, buffer, reads=True)
            return
        whole = memoryview(mmap.mmap(-1, end - first))
        await self._transfer(first, whole, reads=True)
        buffer[:] = whole[offset - first : offset - first + len(buffer)]

    async def write(self, offset: int, buffer: Buffer) -> None:
        first, end = align_down(offset, self._block), align_up(offset + len(buffer), self._block)
        if (first, end) == (offset, offset + len(buffer)):
            await self._transfer(offset, buffer, reads=False)
            return
        whole = memoryview(mmap.mmap(-1, end - first))
        await self._transfer(first, whole[: self._block], reads=True)
        await self._transfer(end - self._block, whole[-self._block :], reads=True)
        whole[offset - first : offset - first + len(buffer)] = buffer
        await self._transfer(first, whole, reads=False)

    async def zero(self, offset: int, length: int) -> bool:
        if not self._unmaps or offset % self._block or length % self._block:
            return False
        lba, blocks = offset // self._block, length // self._block
        while blocks:
            count = min(blocks, self._largest_unmap)
            parameters = scsi.unmap_parameters(lba, count)
            try:
                await self._command(
                    scsi.unmap(len(parameters)),
                    ffi.from_buffer(bytearray(parameters)),
                    len(parameters),
                )
            except _Refused as refusal:
                if refusal.lost or refusal.key != scsi.ILLEGAL_REQUEST:
                    raise self._explain(refusal, "writing", lba * self._block) from None
                self._unmaps = False
                return False
            if not await self._reads_zero(lba, count):
                self._unmaps = False
                return False
            lba, blocks = lba + count, blocks - count
        return True

    async def _reads_zero(self, lba: int, blocks: int) -> bool:
        """First, last and one block between: what was unmapped reads as zeros."""
        for block in {lba, lba + blocks - 1, lba + random.randrange(blocks)}:
            sample = memoryview(bytearray(self._block))
            await self._transfer(block * self._block, sample, reads=True)
            if any(sample):
                return False
        return True

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        if not self._thin:
            return [Extent(offset, length)]
        try:
            answer = await self._ask(
                scsi.get_lba_status(offset // self._block, _STATUS_BYTES), _STATUS_BYTES, "reading status"
            )
        except Fatal:
            self._thin = False
            return [Extent(offset, length)]
        extents: list[Extent] = []
        at, end = offset, offset + length
        for lba, blocks, mapped in scsi.parse_lba_status(answer):
            start, stop = max(at, lba * self._block), min(end, (lba + blocks) * self._block)
            if lba * self._block > at or stop <= start:
                break
            extents.append(Extent(start, stop - start, Kind.DATA if mapped or not self._unmaps else Kind.ZERO))
            at = stop
        return extents or [Extent(offset, length)]

    async def flush(self) -> None:
        try:
            await self._command(scsi.synchronize_cache16(), None, 0)
        except _Refused as refusal:
            if refusal.key == scsi.ILLEGAL_REQUEST and refusal.ascq == 0x2000:
                return
            raise self._explain(refusal, "flushing", None) from None

    async def close(self) -> None:
        if self._context is None:
            return
        self._pump.stop()
        context, self._context = self._context, None
        if self._lost_why is None and not len(self._requests):
            self._lib.iscsi_logout_sync(context)
        self._lost_why = "the connection is closed"
        self._lib.iscsi_destroy_context(context)
        self._requests.fail_all(self.error(Retryable, "talking", None, self._lost_why))


def _login(library: Any, name: str, url: re.Match[str]) -> Any:
    initiator = f"iqn.2026-11.org.mpconv:{uuid.uuid4().hex[:16]}"
    context = library.iscsi_create_context(initiator.encode())
    library.iscsi_set_targetname(context, unquote(url["target"]).encode())
    library.iscsi_set_session_type(context, libiscsi.NORMAL_SESSION)
    library.iscsi_set_header_digest(context, libiscsi.NO_DIGEST)
    library.iscsi_set_noautoreconnect(context, 1)
    library.iscsi_set_timeout(context, _CONNECT_SECONDS)
    environment = os.environ
    user = unquote(url["user"]) if url["user"] else environment.get("LIBISCSI_CHAP_USERNAME", "")
    password = url["password"] or environment.get("LIBISCSI_CHAP_PASSWORD", "")
    if user and password:
        library.iscsi_set_initiator_username_pwd(context, user.encode(), password.encode())
        back_user = environment.get("LIBISCSI_CHAP_TARGET_USERNAME", "")
        back_password = environment.get("LIBISCSI_CHAP_TARGET_PASSWORD", "")
        if back_user and back_password:
            library.iscsi_set_target_username_pwd(context, back_user.encode(), back_password.encode())
    if library.iscsi_full_connect_sync(context, url["portal"].encode(), int(url["lun"])) != 0:
        why = " ".join(ffi.string(library.iscsi_get_error(context)).decode(errors="replace").split())
        library.iscsi_destroy_context(context)
        raise cannot_open(name, why)
    library.iscsi_set_timeout(context, _REQUEST_SECONDS)
    return context


async def connect(url: str, access: Access, *, create_size: int | None = None) -> IscsiTransport:
    """Log in to the LUN of `url`. A LUN cannot be made: `create_size` is only what must fit."""
    name = redacted(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise cannot_open(name, "not of the form iscsi://[user[%password]@]host[:port]/target-iqn/lun")
    library = libiscsi.library()
    try:
        context = await beside(lambda: _login(library, name, match), seconds=_CONNECT_SECONDS + 10)
    except TimeoutError as error:
        raise cannot_open(name, "the target does not answer") from error
    transport = IscsiTransport(name, library, context, match["portal"], match["target"], int(match["lun"]))
    try:
        await transport.discover()
    except MpconvError as error:
        await transport.close()
        raise cannot_open(name, error.why) from error
    return transport
