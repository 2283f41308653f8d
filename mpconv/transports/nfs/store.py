"""NFS by libnfs, in user space: many requests in flight on one connection.

What always holds: automatic reconnect is off (libnfs before 5.0.3 hands out wrong bytes after one), so a lost
connection fails every request that is under way, at once; and every answer's count is compared with what was
asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from mpconv.model.errors import (
    Absent,
    Busy,
    Fatal,
    Gone,
    MpconvError,
    Restarted,
    Retryable,
    StatusWithdrawn,
    Unreachable,
)
from mpconv.model.extent import Extent
from mpconv.transports.base import (
    AS_USUAL,
    CLOSED,
    LEAST_PATIENCE,
    Access,
    Buffer,
    Fingerprint,
    Limits,
    Opening,
    Transport,
    cannot_open,
    moment,
)
from mpconv.transports.identity import Facts, File
from mpconv.transports.native.libnfs import ffi
from mpconv.transports.native.loop import Pump
from mpconv.transports.native.requests import Batch, Requests
from mpconv.transports.native.threads import beside
from mpconv.transports.nfs.session import CONNECT_SECONDS, PIECE, Session, Step, file_of, text_of
from mpconv.transports.nfs.status import meaning
from mpconv.transports.nfs.v42 import Deallocator, HoleMap
from mpconv.transports.nfs.v42 import connect as connect_hole_map
from mpconv.transports.nfs.verifier import Verifiers
from mpconv.transports.nfs.writing import Refused, SyncWriting, Writing
from mpconv.transports.retry import Patience


class NfsTransport(Transport):
    """One mounted export and one open file on it. `where`, `facts`: by what NFSv4.2 finds the same file; `largest`:
    bytes of a read and of a write that the server takes, as far as libnfs goes along.
    """

    ordered = grows = True

    def __init__(self, name: str, session: Session, patience: float) -> None:
        self.name = name
        self.size = session.size
        self.version = session.modified
        self.round_trip = session.round_trip
        self._patience = patience
        self.identity = ("nfs", session.address, session.device, session.inode)
        self.limits = Limits(
            largest_read=min(session.largest_read, PIECE), largest_write=min(session.largest_write, PIECE)
        )
        self.largest = (session.largest_read, session.largest_write)
        self.zero_initialised = session.created
        self._inode, self._is_new = session.inode, session.is_new
        self._beneath = session.beneath
        self._library = session.library
        self._nfs = session.nfs
        self._fh = session.fh
        self._requests = Requests()
        self._on_answer = ffi.callback("nfs_cb", self._answered)
        self._lost_why: str | None = None
        self._lost_kind: type[Retryable] = Retryable
        writing = SyncWriting if session.version_4 else Writing
        self._writing = writing(self._library, self._nfs, self._fh, self._replied)
        self._verifiers = Verifiers()
        self._awaited = 0
        self.where = session.where
        self._handle = session.stamp.handle
        self._fingerprint = Fingerprint(
            {"its inode": str(session.inode), "its file handle": self._handle},
            {"its size": str(session.size), "modified at": moment(*session.modified)},
        )
        self.marks = session.marks()
        self.facts = session.facts
        self.stamp = session.stamp
        self._holes: asyncio.Task[HoleMap | None] | None = None
        self._deallocator = Deallocator(
            session.where, size=session.size, fileid=session.inode, read=self.read_into, write=self._mark
        )
        lib = self._library.lib
        self._pump = Pump(
            lib.nfs_get_fd(self._nfs),
            partial(lib.nfs_which_events, self._nfs),
            partial(lib.nfs_service, self._nfs),
            self._lost,
            self._requests.silent,
        )

    def _answered(self, status: int, nfs: Any, data: Any, tag: Any) -> None:
        self._replied(status, data, tag)

    def _replied(self, status: int, result: Any, tag: Any) -> None:
        self._requests.answered(int(ffi.cast("uintptr_t", tag)), status, result)

    def _lost(self) -> None:
        if self._lost_why is None:
            silent = self._requests.silent()
            words = f"the server {self._requests.watchdog.words}"
            self._lost_why = words if silent else "the connection to the server was lost"
        self._requests.fail_all(Retryable(self._lost_why))

    async def _served(self, queue: Callable[[Batch], None], operation: str, offset: int | None) -> None:
        """Requests, and again while the server puts them off. None is queued once the connection is lost: nothing would
        ever answer it.
        """
        patience: Patience | None = None
        while True:
            self._check(operation, offset, 0)
            batch = Batch()
            queue(batch)
            try:
                await self._end(batch, operation, offset)
                return
            except Busy as error:
                patience = patience or Patience(self._patience)
                if not await patience.wait():
                    raise self.error(Gone, operation, offset, f"{error.why}, for {self._patience:g} seconds") from None

    async def _end(self, batch: Batch, operation: str, offset: int | None) -> None:
        """Wait for all of it. A lost connection knows no offset: here it gets one."""
        try:
            await batch.future
        except Busy:
            raise
        except Retryable as error:
            if self._lost_why is None:
                raise
            raise self.error(
                self._lost_kind, operation, offset if error.offset is None else error.offset, self._lost_why
            ) from error

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        if self._lost_why is not None:
            raise self.error(self._lost_kind, operation, offset, self._lost_why)
        self.check_bounds(operation, offset or 0, length)

    def _fail(self, operation: str, offset: int | None, status: int) -> MpconvError:
        text = "" if self._nfs is None else text_of(self._library.lib.nfs_get_error(self._nfs))
        kind, why = meaning(status, text)
        if kind is Absent:  # by its name there may be another one: who opens it anew will see
            kind = Retryable
        return self.error(kind, operation, offset, why)

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        self._check("reading", offset, len(buffer))
        if not buffer:
            return
        await self._served(partial(self._queue_reads, offset, buffer), "reading", offset)

    def _queue_reads(self, offset: int, buffer: Buffer, batch: Batch) -> None:
        """Not in the coroutine itself: an error's traceback would hold its frame and the pieces in it, in a cycle that
        refers to the error; and some Pythons crash when they collect a memoryview that cffi has exported (3.11 does).
        """
        step = self.limits.largest_read
        batch.left += 1  # or a piece that is refused at once would end the batch before the next one is queued
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            target = ffi.from_buffer(piece, require_writable=True)
            at = offset + start

            def finish(
                status: int, data: Any, at: int = at, target: Any = target, want: int = len(piece)
            ) -> MpconvError | None:
                self._awaited -= want
                self._expect()
                if status < 0:
                    return self._fail("reading", at, status)
                if status != want:
                    return self.error(Fatal, "reading", at + status, _short_read(status, want))
                if not self._library.reads_in_place:
                    ffi.memmove(target, data, want)
                return None

            tag = self._tag(batch, finish, target)
            self._started(
                batch,
                tag,
                self._library.pread(self._nfs, self._fh, at, target, len(piece), self._on_answer, tag),
                "reading",
                at,
            )
        batch.ended(None)
        self._awaited += len(buffer)
        self._expect()
        self._pump.kick()

    def _expect(self) -> None:
        """All that is awaited but for one answer, which may be nearly here already."""
        self._pump.expect(self._awaited - self.limits.largest_read)

    async def write(self, offset: int, buffer: Buffer) -> None:
        self._check("writing", offset, len(buffer))
        if not buffer:
            return
        await self._served(partial(self._queue_writes, offset, buffer), "writing", offset)

    def _queue_writes(self, offset: int, buffer: Buffer, batch: Batch) -> None:
        step = self.limits.largest_write
        batch.left += 1
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            self._queue_write(batch, offset + start, ffi.from_buffer(piece), 0, len(piece))
        batch.ended(None)
        self._pump.kick()

    def _queue_write(self, batch: Batch, offset: int, source: Any, start: int, want: int) -> None:
        """Of what `source` has from byte `start` on; and again of what the server did not take."""
        at = offset + start

        def finish(status: int, result: Any) -> MpconvError | None:
            answer = self._writing.taken(status, result)
            if isinstance(answer, Refused):
                return self._refused("writing", at, answer)
            if not 0 < answer.count <= want:
                return self.error(Fatal, "writing", at, f"the server took {answer.count} of {want} bytes")
            if not self._verifiers.wrote(answer.verifier, answer.stability):
                return self._restarted("writing", at)
            if answer.count < want:
                self._queue_write(batch, offset, source, start + answer.count, want - answer.count)
                self._pump.kick()
            return None

        tag = self._tag(batch, finish, source)
        started = self._writing.write(at, ffi.cast("char *", source) + start, want, tag)
        self._started(batch, tag, started, "writing", at)

    def _refused(self, operation: str, offset: int | None, answer: Refused) -> MpconvError:
        kind = Retryable if answer.kind is Absent else answer.kind  # by its name there may be another one
        return self.error(kind, operation, offset, answer.why)

    def _restarted(self, operation: str, offset: int | None) -> MpconvError:
        """What was written through this connection may be gone: it serves nobody any more."""
        if self._lost_why is None:
            self._lost_why, self._lost_kind = _RESTARTED, Restarted
        return self.error(self._lost_kind, operation, offset, self._lost_why)

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """Holes by NFSv4.2, where the server tells them and proves right; else all of it is data."""
        self._check("reading block status", offset, length)
        if self.facts is None or not length:
            return [Extent(offset, length)] if length else []
        if self._holes is None:
            self._holes = asyncio.create_task(connect_hole_map(self.where, facts=self.facts, read=self.read_into))
        await asyncio.wait([self._holes])
        self._check("reading block status", offset, length)
        holes = self._holes.result()
        if holes is None:
            return [Extent(offset, length)]
        extents = await holes.block_status(offset, length)
        if holes.lied:  # in the first stretch already, too: an earlier connection may have told the same
            why = f"the server names holes where there is data ({holes.doubt})"
            raise self.error(StatusWithdrawn, "reading block status", offset, why)
        return extents

    async def zero(self, offset: int, length: int) -> bool:
        """A hole by NFSv4.2, where the server makes one and proves that it did. To be awaited before the same bytes are
        written: it goes another way.
        """
        self._check("writing", offset, length)
        stored = min(length, self.size - offset)  # the padding of the last sector is not stored, and reads as zeros
        if stored > 0 and await self._deallocator.zero(offset, stored):
            self._verifiers.holds()
            return True
        self._check("writing", offset, length)
        return False

    async def _mark(self, offset: int, buffer: Buffer) -> None:
        """Written before the first hole is made. Holes may be lost as writes are: from now on a restart is noticed."""
        await self.write(offset, buffer)
        if not self._verifiers.known:
            await self.flush()

    @property
    def zeroing(self) -> str:
        return self._deallocator.words

    async def disk_size(self) -> int | None:
        """As the server counts it now: asked by a session of its own, as libnfs's blocking calls are."""
        self._check("reading the disk size", None, 0)
        session = Session(self.name, self._beneath)
        try:
            await _opened(session, Access.READ, None)
        except (MpconvError, TimeoutError):
            return None
        session.close()
        return session.used if session.inode == self._inode else None

    async def fingerprint(self) -> Fingerprint:
        """As it was when it was opened."""
        return self._fingerprint

    async def known_by(self) -> Facts:
        found: list[File] = []
        await self._served(partial(self._queue_look, found), "asking what it is", None)
        return Facts(self.identity, files=tuple(found), size=self.size)

    def _queue_look(self, found: list[File], batch: Batch) -> None:
        def finish(status: int, data: Any) -> MpconvError | None:
            if status < 0:
                return self._fail("asking what it is", None, status)
            found.append(file_of(ffi.cast("struct nfs_stat_64 *", data), self._handle))
            return None

        tag = self._tag(batch, finish, None)
        started = self._library.lib.nfs_fstat64_async(self._nfs, self._fh, self._on_answer, tag)
        self._started(batch, tag, started, "asking what it is", None)
        self._pump.kick()

    async def flush(self) -> None:
        """COMMIT of all of the file. Servers do an fsync for it, which covers the holes that were made too; the Linux
        kernel's has written those down before it answered DEALLOCATE.
        """
        self._check("flushing", None, 0)
        await self._served(self._queue_flush, "flushing", None)

    def _queue_flush(self, batch: Batch) -> None:
        covered = self._verifiers.asked()

        def finish(status: int, result: Any) -> MpconvError | None:
            answer = self._writing.committed(status, result)
            if isinstance(answer, Refused):
                return self._refused("flushing", None, answer)
            if not self._verifiers.committed(answer.verifier, covered):
                return self._restarted("flushing", None)
            return None

        tag = self._tag(batch, finish, None)
        self._started(batch, tag, self._writing.commit(tag), "flushing", None)
        self._pump.kick()

    def _tag(self, batch: Batch, finish: Any, keep: Any) -> Any:
        return ffi.cast("void *", self._requests.add(batch, finish, keep))

    def _started(self, batch: Batch, tag: Any, result: int, operation: str, offset: int | None) -> None:
        if result != 0:
            why = text_of(self._library.lib.nfs_get_error(self._nfs)) or "libnfs refused the request"
            error = self.error(Retryable, operation, offset, why)
            self._requests.fail_one(int(ffi.cast("uintptr_t", tag)), error)

    async def discard(self) -> bool:
        """By a session of its own: this one may be lost."""
        if not self._is_new:
            return False
        remove = partial(Session(self.name, self._beneath).remove, self._inode, self._handle)
        try:
            return await beside(remove, seconds=CONNECT_SECONDS)
        except (MpconvError, TimeoutError):
            return False

    async def close(self) -> None:
        if self._lost_why == CLOSED:
            return
        self._lost_why = CLOSED
        if self._holes is not None:
            self._holes.cancel()
            for holes in await asyncio.gather(self._holes, return_exceptions=True):
                if isinstance(holes, HoleMap):
                    await holes.close()
        await self._deallocator.close()
        self._pump.stop()
        nfs, self._nfs = self._nfs, None
        self._library.lib.nfs_destroy_context(nfs)
        self._requests.fail_all(Retryable(self._lost_why))


_RESTARTED = "the server was started again before it had made it durable"


def _short_read(got: int, wanted: int) -> str:
    return (
        f"the server returned {got} of {wanted} bytes: the file may have shrunk; see who writes to it, and begin anew"
    )


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> NfsTransport:
    """Mount the directory of `url` and open its last component; `create_size` makes or replaces the file."""
    session = Session(url, opening.beneath)
    try:
        await _opened(session, access, create_size, opening.patience, opening.replaces)
    except TimeoutError as error:
        raise cannot_open(url, "the server does not answer", Unreachable) from error
    store = NfsTransport(url, session, opening.patience)
    store.growing = opening.growing
    return store


async def directory(url: str, seconds: float) -> tuple[int | None, bool]:
    """Of the directory that the file of `url` lies in, or would: bytes of room that the server tells of, and whether
    files may be made there. Fatal, or TimeoutError.
    """
    session = Session(url)
    return await beside(session.directory, seconds=seconds)


async def _opened(
    session: Session,
    access: Access,
    create_size: int | None,
    seconds: float = LEAST_PATIENCE,
    replaces: dict[str, str] | None = None,
) -> None:
    """TimeoutError when it takes too long; a session that comes about afterwards is closed. `seconds`: for how long it
    is tried when the server puts it off. `replaces`: as Opening's.
    """
    patience = Patience(seconds)
    for step in session.steps(access, create_size, replaces):
        while not await _done(step, session):
            try:
                again = await patience.wait()
            except BaseException:
                await _abandoned(session)
                raise
            if not again:
                await _abandoned(session)
                raise cannot_open(session.name, f"the server asks to try again later, for {seconds:g} seconds", Gone)


async def _abandoned(session: Session) -> None:
    with contextlib.suppress(TimeoutError):
        await beside(session.abandon, seconds=CONNECT_SECONDS)


async def _done(step: Step, session: Session) -> bool:
    """False: the server asks for patience."""
    try:
        await beside(step, seconds=CONNECT_SECONDS + 5, undo=lambda _: session.close())
    except Busy:
        return False
    return True
