"""A small NFSv4.2 server in the test's own event loop, with one file, that tells the truth or whatever it is told to.

It knows just the operations that finding and making holes needs, and checks what real servers check: sequence numbers,
handles, the state of the open.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from mpconv.transports.nfs.v42.compound import Op, What
from mpconv.transports.nfs.v42.hole_map import FileFacts
from mpconv.transports.nfs.v42.xdr import Reader, long, opaque, words

NXIO, MINOR_VERSION_MISMATCH = 6, 10021
_CLIENT, _SESSION, _HANDLE, _STATE = 7, b"s" * 16, b"the-file", b"o" * 16
_ROOT = b"the-root"
_NO_ENTRY, _STALE, _BAD_STATE, _OPEN_MODE, _MISORDERED = 2, 70, 10025, 10038, 10063

Answer = tuple[int, bool, int]
"""Of SEEK: status, whether the end came first, the offset."""


class Trouble(enum.Enum):
    """What becomes of a connection in place of an answer."""

    HANG = enum.auto()
    HANG_UP = enum.auto()
    HALF_AN_ANSWER = enum.auto()
    GARBAGE = enum.auto()
    HUGE_RECORD = enum.auto()
    EMPTY_FRAGMENTS = enum.auto()
    OTHER_XID = enum.auto()
    DENIED = enum.auto()
    NO_RESULTS = enum.auto()
    OTHER_OPERATION = enum.auto()
    DRIP = enum.auto()


@dataclass
class FakeNfs4:
    """`data`: the ranges [start, end) of data. `seek`: in place of the truth. `trouble`: what happens, or the status
    that is answered, at an operation, from its call number `after` on. `store`: the bytes of a file that is written to;
    `elsewhere`: those that version 4 has under the same name. `deallocate`: in place of zeros, with the range.
    """

    size: int
    data: list[tuple[int, int]] = field(default_factory=list)
    path: str = "/export/image"
    seek: Callable[[int, What], Answer] | None = None
    trouble: dict[Op, Trouble | int] = field(default_factory=dict)
    after: int = 0
    change: Callable[[], int] = lambda: 1
    store: bytearray = field(default_factory=bytearray)
    elsewhere: bytearray | None = None
    deallocate: Callable[[int, int], None] | None = None
    calls: Counter[Op] = field(default_factory=Counter)
    port: int = 0

    async def __aenter__(self) -> FakeNfs4:
        self._connections: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def facts(self) -> FileFacts:
        """What NFSv3 would say of the file."""
        return FileFacts(self.size, 42, 1000, 5, sum(end - start for start, end in self.data))

    async def read(self, offset: int, buffer: memoryview) -> None:
        """The file's bytes: those of the store, or x where there is data."""
        if self.store:
            buffer[:] = self.store[offset : offset + len(buffer)]
            return
        for start, end in self.data:
            first, last = max(start - offset, 0), min(end - offset, len(buffer))
            if first < last:
                buffer[first:last] = b"x" * (last - first)

    async def write(self, offset: int, buffer: memoryview) -> None:
        """Into the store."""
        self.store[offset : offset + len(buffer)] = buffer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while True:
                (mark,) = struct.unpack(">I", await reader.readexactly(4))
                request = Reader(await reader.readexactly(mark & 0x7FFFFFFF))
                xid = request.word()
                found = self._compound(request)
                if isinstance(found, Trouble):
                    if not await _make_trouble(found, writer, xid):
                        return
                else:
                    body = words(xid, 1, 0, 0, 0, 0) + found
                    writer.write(words(0x80000000 | len(body)) + body)
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    def _compound(self, request: Reader) -> bytes | Trouble:
        assert [request.word() for _ in range(5)] == [0, 2, 100003, 4, 1]
        for _ in range(2):
            request.word()
            request.opaque(400)
        request.opaque(100)
        minor, count = request.word(), request.word()
        if minor != 2:
            return words(MINOR_VERSION_MISMATCH) + opaque(b"") + words(0)
        results: list[bytes] = []
        status, self._handle = 0, b""
        while len(results) < count and status == 0:
            operation = Op(request.word())
            self.calls[operation] += 1
            trouble = self.trouble.get(operation) if self.calls[operation] > self.after else None
            if isinstance(trouble, Trouble):
                return trouble
            status, result = (trouble, b"") if trouble is not None else self._operation(operation, request)
            results.append(words(operation, status) + (result if status == 0 else b""))
        return words(status) + opaque(b"") + words(len(results)) + b"".join(results)

    def _operation(self, operation: Op, request: Reader) -> tuple[int, bytes]:
        match operation:
            case Op.EXCHANGE_ID:
                request.fixed(8)
                request.opaque(1024)
                request.fixed(12)
                return 0, long(_CLIENT) + words(1, 0, 0) + long(0) + opaque(b"") + opaque(b"") + words(0)
            case Op.CREATE_SESSION:
                assert (request.long(), request.word()) == (_CLIENT, 1)
                fore = [request.fixed(4) for _ in range(8)][1:]
                back = [request.fixed(4) for _ in range(7)]
                assert [request.word() for _ in range(3)] == [0x40000000, 1, 0]
                self._number = 0
                return 0, _SESSION + words(1, 0) + b"".join(fore + back)
            case Op.SEQUENCE:
                session, number = request.fixed(16), request.word()
                request.fixed(12)
                self._number += 1
                if (session, number) != (_SESSION, self._number):
                    return _MISORDERED, b""
                return 0, _SESSION + words(number, 0, 0, 0, 0)
            case Op.RECLAIM_COMPLETE:
                request.word()
            case Op.PUTROOTFH:
                self._handle = _ROOT
            case Op.PUTFH:
                self._handle = request.opaque(128)
                if self._handle != _HANDLE and not self._handle.startswith(_ROOT):
                    return _STALE, b""
            case Op.LOOKUP:
                self._handle += b"/" + request.opaque(255)
                whole = _ROOT + self.path.encode()
                if self._handle == whole:
                    self._handle = _HANDLE
                elif not whole.startswith(self._handle + b"/"):
                    return _NO_ENTRY, b""
            case Op.GETFH:
                return 0, opaque(self._handle)
            case Op.GETATTR:
                words_given = request.word()
                wanted = [request.word() for _ in range(words_given)]
                values = words(1 if self._handle == _HANDLE else 2) + long(self.change())
                values += long(self.size) + long(42) + struct.pack(">qI", 1000, 5)
                return 0, words(len(wanted), *wanted) + opaque(values)
            case Op.OPEN:
                request.word()
                self._writable = bool(request.word() & 2)
                request.fixed(12)
                request.opaque(1024)
                assert (request.word(), request.word()) == (0, 4)
                return 0, _STATE + words(0) + long(1) + long(1) + words(0, 0, 0)
            case Op.SEEK:
                state, offset, what = request.fixed(16), request.long(), What(request.word())
                if (state, self._handle) != (_STATE, _HANDLE):
                    return _BAD_STATE, b""
                status, ended, found = (self.seek or self.truth)(offset, what)
                return status, words(int(ended)) + long(found)
            case Op.READ:
                state, offset, count = request.fixed(16), request.long(), request.word()
                if (state, self._handle) != (_STATE, _HANDLE):
                    return _BAD_STATE, b""
                seen = self.store if self.elsewhere is None else self.elsewhere
                return 0, words(0) + opaque(bytes(seen[offset : offset + count]))
            case Op.DEALLOCATE:
                state, offset, length = request.fixed(16), request.long(), request.long()
                if (state, self._handle) != (_STATE, _HANDLE):
                    return _BAD_STATE, b""
                if not self._writable:
                    return _OPEN_MODE, b""
                (self.deallocate or self.zero)(offset, length)
            case Op.CLOSE:
                request.word()
                return 0, request.fixed(16)
            case Op.DESTROY_SESSION:
                request.fixed(16)
            case Op.DESTROY_CLIENTID:
                request.long()
        return 0, b""

    def zero(self, offset: int, length: int) -> None:
        """What an honest server does."""
        length = max(0, min(length, len(self.store) - offset))
        self.store[offset : offset + length] = bytes(length)

    def truth(self, offset: int, what: What) -> Answer:
        """What an honest server says; as the Linux kernel's, with NXIO where there is no more data."""
        if offset >= self.size:
            return NXIO, False, 0
        for start, end in self.data:
            if what is What.DATA and offset < end:
                return 0, False, max(offset, start)
            if what is What.HOLE and start <= offset < end:
                return 0, end == self.size, end
        return (NXIO, False, 0) if what is What.DATA else (0, False, offset)


async def _make_trouble(trouble: Trouble, writer: asyncio.StreamWriter, xid: int) -> bool:
    """Whether the connection goes on."""
    match trouble:
        case Trouble.HANG:
            pass
        case Trouble.HANG_UP:
            return False
        case Trouble.HALF_AN_ANSWER:
            writer.write(words(0x80000040, xid, 1, 0))
            await writer.drain()
            return False
        case Trouble.GARBAGE:
            writer.write(words(0x80000020) + bytes(range(100, 132)))
        case Trouble.HUGE_RECORD:
            writer.write(words(0xFFFFFFFF, xid, 1, 0))
        case Trouble.EMPTY_FRAGMENTS:
            writer.write(words(0, 0, 0, 0))
        case Trouble.OTHER_XID:
            writer.write(words(0x80000018, xid ^ 1, 1, 0, 0, 0, 0))
        case Trouble.DENIED:
            writer.write(words(0x80000014, xid, 1, 1, 0, 2))
        case Trouble.NO_RESULTS:
            writer.write(words(0x80000024, xid, 1, 0, 0, 0, 0, 0, 0, 0))
        case Trouble.OTHER_OPERATION:
            writer.write(words(0x8000002C, xid, 1, 0, 0, 0, 0, 0, 1, 3, 0))
        case Trouble.DRIP:
            while not writer.is_closing():
                writer.write(words(1) + b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
    await writer.drain()
    return True
