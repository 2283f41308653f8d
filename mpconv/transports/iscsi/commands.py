"""The command layer of iSCSI: SCSI commands to one LUN by libiscsi, many in flight on one session.

What always holds: the library does not reconnect (a reconnect would hide a target's crash and what its cache
lost); every command's status and residual are looked at. A command that was aborted is tried a few times more; after
BUSY, TASK SET FULL and UNIT ATTENTION, which is news and no error, it is sent again for as long as there is patience;
after news the LUN is looked at first, since it may be another one, or have another size, by now.
Whatever else a command meets is raised as `Refused`, after everything that was started with it has ended.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from msgspec import Struct

from mpconv.model.errors import Gone, MpconvError, Retryable
from mpconv.model.units import MiB
from mpconv.transports.base import CLOSED, Buffer
from mpconv.transports.iscsi import resets as iscsi_resets
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi.login import Session
from mpconv.transports.native import libiscsi
from mpconv.transports.native.libiscsi import ffi
from mpconv.transports.native.loop import Pump
from mpconv.transports.native.requests import Batch, Requests
from mpconv.transports.retry import Patience

_TRIES = 8
_NEWS_AT_ONCE, _AFTER_NEWS = 512, 0.1
"""Each that was told is one less to come: a target may have one for every LUN that was added to it, and there may be
hundreds. After so many in a row so many seconds at most lie between one and the next.
"""
PIECE = MiB


class Refusal(Struct, frozen=True):
    """How a command that did not do what it should ended, and at which byte of the LUN. `why`: more than its status
    tells. `deferred`: it tells of an earlier command, and this one was not carried out.

    No exception, so that lists of them may lie in the frames that one is raised through: that would be garbage that
    refers to itself, and CPython 3.11 crashes when it collects such with a memoryview in it (gh-77894).
    """

    status: int
    key: int
    ascq: int
    at: int | None
    why: str = ""
    deferred: bool = False

    def __str__(self) -> str:
        return self.why or scsi.words(self.status, self.key, self.ascq)

    @property
    def put_off(self) -> bool:
        """Whether the same command may succeed on the same session, in a while."""
        return not self.deferred and scsi.is_put_off(self.status, self.key, self.ascq)

    @property
    def full(self) -> bool:
        """Whether there was no room; also when it is said of an earlier command."""
        return scsi.is_full(self.status, self.key, self.ascq)

    @property
    def news(self) -> bool:
        """Whether the target only had to tell something first."""
        return not self.deferred and scsi.is_news(self.status, self.key)

    @property
    def passing(self) -> bool:
        """Whether the same command may succeed a moment later on the same session."""
        if self.deferred:
            return self.key == scsi.RECOVERED
        return self.put_off or scsi.is_interrupted(self.status, self.key)

    @property
    def lost(self) -> bool:
        """Whether only a new connection can help."""
        return self.status in (scsi.CANCELLED, scsi.FAILED, scsi.TIMED_OUT)

    @property
    def unsupported(self) -> bool:
        """Whether the target does not know the command, or not in this form."""
        return self.status == scsi.CHECK_CONDITION and self.key == scsi.ILLEGAL_REQUEST


class Refused(Exception):
    """A command was refused."""

    def __init__(self, how: Refusal) -> None:
        super().__init__(str(how))
        self.how = how


def is_here(peer: str, own: str) -> bool:
    """Whether who is talked to is this host itself."""
    return peer == own or ipaddress.ip_address(peer.partition("%")[0]).is_loopback


class Commands:
    """One session and one LUN. OSError when the target has ended the connection already.

    `block`: bytes of the LUN's blocks; `piece`: the most bytes that one READ or WRITE moves; `look`: sees whether the
    LUN is still what it was, Gone when it is not: then that is said to everybody (`over`). All are set by who asks the
    LUN what it is. `news`: so often the target had something to tell.
    """

    block = 512
    piece = PIECE

    def __init__(self, session: Session, lun: int, patience: float) -> None:
        library, context = session.library, session.context
        self._session = session
        self._lib = library
        self._patience = patience
        self._context = context
        self._lun = lun
        self._requests = Requests()
        self._on_answer = ffi.callback("iscsi_command_cb", self._answered)
        self.lost_why: str | None = None
        self.news = self._looked_at = 0
        self.look: Callable[[], Awaitable[None]] | None = None
        self.over: Gone | None = None
        self.resets = iscsi_resets.Resets(session.address.place)
        self._looking = asyncio.Lock()
        self._timed_out = False
        with socket.socket(fileno=os.dup(library.iscsi_get_fd(context))) as connection:
            self.peer: tuple[str, int] = connection.getpeername()[:2]
            self.here = is_here(self.peer[0], connection.getsockname()[0])
        self._pump = Pump(
            library.iscsi_get_fd(context),
            partial(library.iscsi_which_events, context),
            partial(library.iscsi_service, context),
            self._lost,
            self._requests.silent,
        )

    def _answered(self, context: Any, status: int, task: Any, tag: Any) -> None:
        self._requests.answered(int(ffi.cast("uintptr_t", tag)), status, ffi.cast("struct scsi_task *", task))

    def _lost(self) -> None:
        silent = self._requests.silent()
        words = f"the target {self._requests.watchdog.words}"
        self.lost_why = words if silent else "the connection to the target was lost"
        self._requests.fail_all(Retryable(self.lost_why))

    def _queue(
        self,
        batch: Batch,
        cdb: bytes,
        data: Any,
        length: int,
        refused: list[Refusal],
        *,
        reads: bool,
        at: int | None = None,
        exact: bool = False,
    ) -> None:
        """Start one command; its refusal, if any, is put into `refused`. `exact`: all of `data` must be moved."""
        if self.lost_why is not None:
            refused.append(Refusal(scsi.CANCELLED, 0, 0, at))
            return
        task = self._lib.scsi_create_task(len(cdb), cdb, 0 if not length else 1 if reads else 2, length)
        if length:
            pointer = ffi.cast("unsigned char *", data)
            add = self._lib.scsi_task_add_data_in_buffer if reads else self._lib.scsi_task_add_data_out_buffer
            if add(task, length, pointer) != 0:
                self._lib.scsi_free_scsi_task(task)
                refused.append(Refusal(scsi.FAILED, 0, 0, at, "libiscsi could not take a buffer"))
                return

        def finish(status: int, answered: Any) -> MpconvError | None:
            self._timed_out |= status == scsi.TIMED_OUT
            refusal = None if status == scsi.GOOD else self._refusal(status, answered, at)
            if refusal is not None:
                refused.append(refusal)
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

    def _refusal(self, status: int, answered: Any, at: int | None) -> Refusal | None:
        """None for what was carried out: a recovered error is one that the target made good."""
        sense = ffi.new("struct scsi_sense *")
        if status == scsi.CHECK_CONDITION:
            self._lib.scsi_task_get_status(answered, sense)
        deferred = sense.error_type in scsi.DEFERRED
        if sense.key == scsi.RECOVERED and not deferred:
            return None
        why = f"an earlier command failed: {scsi.words(status, sense.key, sense.ascq)}" if deferred else ""
        return Refusal(status, sense.key, sense.ascq, at, why, deferred)

    @staticmethod
    async def _end(batch: Batch, refused: list[Refusal], at: int | None) -> None:
        """Wait for all of it. Without an answer, the connection was lost."""
        try:
            await batch.future
        except Retryable as error:
            if not any(refusal.lost for refusal in refused):
                refused.append(Refusal(scsi.CANCELLED, 0, 0, at, str(error)))

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
        heeds: bool = True,
    ) -> None:
        """One command, again while it is only put off. `heeds`: news is a reason to look at the LUN again."""
        patience: Patience | None = None
        heard = 0
        while True:
            if self.over is not None:
                raise copy.copy(self.over)
            batch, refused = Batch(), list[Refusal]()
            batch.left += 1
            self._queue(batch, cdb, data, length, refused, reads=reads, at=at, exact=exact)
            batch.ended(None)
            await self._end(batch, refused, at)
            if not refused:
                return
            how = refused[0]
            if how.news or how.put_off:
                heard += how.news
                await self._hear(how, heeds=heeds)
                patience = patience or Patience(self._patience)
                if how.news:
                    again = heard <= _NEWS_AT_ONCE or await patience.wait(_AFTER_NEWS)
                else:
                    again = await patience.wait()
                if again:
                    continue
            elif how.passing and tried < _TRIES - 1:
                await asyncio.sleep(0.005 * 2**tried if tried else 0)
                tried += 1
                continue
            raise Refused(how)

    async def _hear(self, how: Refusal, *, heeds: bool = True) -> None:
        """Of news. However many commands it came to, the LUN is looked at once."""
        if not how.news:
            return
        self.news += 1
        if self.resets.hear(how.ascq) and self.lost_why is None:
            self._pump.stop()
            self.lost_why = iscsi_resets.WORDS
            self._requests.fail_all(Retryable(self.lost_why))
        if self.lost_why is not None:
            raise Refused(Refusal(scsi.CANCELLED, 0, 0, how.at))
        if not heeds or self.look is None:
            return
        mine = self.news
        async with self._looking:
            if self._looked_at >= mine:
                return
            mine = self.news
            try:
                await self.look()
            except Gone as error:
                self.over = error
                raise
            self._looked_at = mine

    async def tell(self, cdb: bytes, data: bytearray | None = None, *, at: int | None = None) -> None:
        """A command that takes `data`, or nothing."""
        await self._command(cdb, None if data is None else ffi.from_buffer(data), len(data or b""), at=at)

    async def ask(self, cdb: bytes, length: int, *, at: int | None = None, heeds: bool = True) -> bytes:
        """A command that answers `length` bytes at most; zeros follow a shorter answer."""
        answer = ffi.new("unsigned char[]", length)
        await self._command(cdb, answer, length, reads=True, at=at, heeds=heeds)
        return bytes(ffi.buffer(answer))

    async def ask_if_known(self, cdb: bytes, length: int, *, heeds: bool = True) -> bytes:
        """Zeros where the target refuses to tell."""
        try:
            return await self.ask(cdb, length, heeds=heeds)
        except Refused as refused:
            if refused.how.lost:
                raise
            return bytes(length)

    async def transfer(self, offset: int, buffer: Buffer, *, reads: bool) -> None:
        """Whole blocks, in pieces that are in flight together."""
        make = scsi.read16 if reads else scsi.write16
        batch, refused = Batch(), list[Refusal]()
        batch.left += 1  # or a piece that is refused at once would end the batch before the next one is queued
        for start in range(0, len(buffer), self.piece):
            part = buffer[start : start + self.piece]
            at = offset + start
            pointer = ffi.from_buffer(part, require_writable=reads)
            cdb = make(at // self.block, len(part) // self.block)
            self._queue(batch, cdb, pointer, len(part), refused, reads=reads, at=at, exact=True)
        batch.ended(None)
        await self._end(batch, refused, offset)
        if refused:
            await self._again(offset, buffer, refused, make, reads=reads)

    async def _again(self, offset: int, buffer: Buffer, refused: list[Refusal], make: Any, *, reads: bool) -> None:
        """The pieces that were only put off, one after the other. Of those that cannot be had the first is raised: a
        target with many threads may have refused them in any order.
        """
        for refusal in refused:
            await self._hear(refusal)  # what was refused besides may be so because of it
        lasting = [refusal for refusal in refused if not refusal.passing]
        if lasting:
            raise Refused(min(lasting, key=lambda refusal: (not refusal.lost, refusal.at or 0)))
        for refusal in refused:
            at = refusal.at
            assert at is not None
            part = buffer[at - offset : at - offset + self.piece]
            pointer = ffi.from_buffer(part, require_writable=reads)
            cdb = make(at // self.block, len(part) // self.block)
            await self._command(cdb, pointer, len(part), reads=reads, at=at, exact=True, tried=1)

    async def close(self) -> None:
        """Log out when nothing is under way; else cut the connection, and everything ends as lost."""
        if self._context is None:
            return
        self._pump.stop()
        self._context = None
        connected, self.lost_why = self.lost_why is None and not self._timed_out, CLOSED
        if connected and not len(self._requests):
            await self._session.log_out()
            return
        self._session.end()
        self._requests.fail_all(Retryable(CLOSED))


def _short(task: Any, length: int, reads: bool, at: int | None) -> Refusal:
    """A transfer whose length differs from what was asked for, though its status is good."""
    moved = length - task.residual if task.residual_status == libiscsi.UNDERFLOW else length + task.residual
    why = f"the target {'returned' if reads else 'took'} {moved} of {length} bytes"
    return Refusal(scsi.GOOD, 0, 0, at, why)
