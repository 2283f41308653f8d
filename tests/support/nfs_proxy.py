"""A proxy on loopback before a real NFS server, with hooks that see every call and every reply and may put others in
their place: so that a server behaves as others do, or as one that fails.

Unlike a relay it knows which reply belongs to which call, and can answer in the server's stead. It runs in a thread
with an event loop of its own, and the hooks run there, one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from mpconv.transports.nfs.v42.xdr import Reader, words
from tests.support.relay import rpc_length
from tests.support.servers import LOOPBACK

JUKEBOX = 10008
REPLY_HEADER = 24
"""Bytes of an RPC reply that was accepted, before its results; these begin with the status."""
_PATIENCE = 60.0
_MOST = 1 << 23

_NFS3 = """NULL GETATTR SETATTR LOOKUP ACCESS READLINK READ WRITE CREATE MKDIR SYMLINK MKNOD REMOVE RMDIR RENAME LINK
READDIR READDIRPLUS FSSTAT FSINFO PATHCONF COMMIT"""
_PROCEDURES = {
    (100003, 3): _NFS3.split(),
    (100003, 4): ["NULL", "COMPOUND"],
    (100005, 3): ["NULL", "MNT", "DUMP", "UMNT", "UMNTALL", "EXPORT"],
}
_AFTER_STATUS = {
    **dict.fromkeys(["GETATTR", "MNT"], 0),
    **dict.fromkeys(["SETATTR", "WRITE", "CREATE", "MKDIR", "SYMLINK", "MKNOD", "REMOVE", "RMDIR", "COMMIT"], 8),
    **{"RENAME": 16, "LINK": 12, "COMPOUND": 8},
}
"""Bytes of a refusal that follow its status: no attributes, not before and not after; 4 where nothing is said here."""


class Cut(enum.Enum):
    """What a hook may answer instead."""

    ONE = enum.auto()
    """The connection it came by is reset."""
    ALL = enum.auto()
    """All connections are."""
    SILENCE = enum.auto()
    """It goes no further, and nothing comes in its place."""


Answer = int | bytes | Cut | None
"""None: pass it on as it is; bytes: in its place; a number: the server's refusal, with that status."""
CallHook = Callable[[str, bytes, int], Answer]
"""The procedure's name, the whole RPC call, its number among the calls of that name, from 1."""
ReplyHook = Callable[[str, bytes, int, bytes], Answer]
"""The procedure's name, the whole RPC reply, the number of its call, the call."""


def arguments(call: bytes) -> Reader:
    """Of a call, behind its credentials. Most begin with a file handle: opaque(64)."""
    reader = Reader(call, REPLY_HEADER)
    for _ in range(2):
        reader.word()
        reader.opaque(400)
    return reader


@dataclass(frozen=True)
class Range:
    """What READ, WRITE and COMMIT name."""

    handle: bytes
    offset: int
    count: int

    @classmethod
    def of(cls, call: bytes) -> Range:
        reader = arguments(call)
        return cls(reader.opaque(64), reader.long(), reader.word())


def refusal(xid: int, name: str, status: int) -> bytes:
    """A server's reply with that status and nothing else."""
    return words(xid, 1, 0, 0, 0, 0, status) + bytes(_AFTER_STATUS.get(name, 4))


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    calls: dict[int, tuple[str, bytes, int]] = field(default_factory=dict)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class NfsProxy:
    """Listens on `port` of 127.0.0.1. `calls`: how many came, by name; `url`: that of a server, by way of here."""

    def __init__(self, to: int, call: CallHook | None = None, reply: ReplyHook | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.to = to
        self._call, self._reply = call, reply
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="nfs-proxy")
        self._thread.start()
        self._listener = self._do(asyncio.start_server(self._serve, LOOPBACK, 0, limit=_MOST))
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def url(self, url: str) -> str:
        """That of the server, led through here: by whichever of its ports this stands before."""
        return url.replace(f"port={self.to}", f"port={self.port}")

    def cut(self) -> None:
        """All connections, now."""

        async def cut() -> None:
            self._cut_all()

        self._do(cut())

    def close(self) -> None:
        """End it all."""

        async def end() -> None:
            self._listener.close()
            self._cut_all()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    def _cut_all(self) -> None:
        for link in self._links:
            link.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self.to, limit=_MOST)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._tasks.discard(task)
        link = _Link(writer, back)
        self._links.add(link)
        self._tasks.add(task)
        await asyncio.gather(self._pass(link, reader, self._forward), self._pass(link, there, self._back))
        self._links.discard(link)
        self._tasks.discard(task)

    async def _pass(
        self, link: _Link, source: asyncio.StreamReader, step: Callable[[_Link, bytes], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            while True:
                await step(link, await _message(source))
        except (EOFError, ConnectionError):
            pass
        finally:
            link.client.close()
            link.server.close()

    async def _forward(self, link: _Link, call: bytes) -> None:
        xid, _, _, program, version, procedure = struct.unpack_from(">6I", call)
        names = _PROCEDURES.get((program, version))
        answer: Answer = None
        if names is not None:
            name = names[procedure]
            self.calls[name] += 1
            number = self.calls[name]
            link.calls[xid] = (name, call, number)
            answer = self._call(name, call, number) if self._call is not None else None
            if isinstance(answer, int):
                del link.calls[xid]
                await _send(link.client, refusal(xid, name, answer))
                return
        await self._answer(link, link.server, call, answer)

    async def _back(self, link: _Link, reply: bytes) -> None:
        xid = int.from_bytes(reply[:4])
        known = link.calls.pop(xid, None)
        answer: Answer = None
        if known is not None and self._reply is not None:
            name, call, number = known
            answer = self._reply(name, reply, number, call)
            if isinstance(answer, int):
                answer = refusal(xid, name, answer)
        await self._answer(link, link.client, reply, answer)

    async def _answer(self, link: _Link, sink: asyncio.StreamWriter, message: bytes, answer: Answer) -> None:
        match answer:
            case Cut.ONE:
                link.cut()
            case Cut.ALL:
                self._cut_all()
            case Cut.SILENCE:
                pass
            case bytes():
                await _send(sink, answer)
            case _:
                await _send(sink, message)


async def _message(source: asyncio.StreamReader) -> bytes:
    """The next RPC message, its fragments put together."""
    whole = b""
    while True:
        mark = await source.readexactly(4)
        whole += await source.readexactly(rpc_length(bytearray(mark)) - 4)
        if mark[0] & 0x80:
            return whole


async def _send(sink: asyncio.StreamWriter, message: bytes) -> None:
    sink.write(words(0x80000000 | len(message)) + message)
    await sink.drain()


@contextlib.contextmanager
def nfs_proxy(to: int, call: CallHook | None = None, reply: ReplyHook | None = None) -> Iterator[NfsProxy]:
    """Before the server's port `to`, its NFS port or its mount port; closed at the end."""
    made = NfsProxy(to, call, reply)
    try:
        yield made
    finally:
        made.close()


class SeekLie:
    """A server whose SEEK hides data: where the file has a hole, its READs of [start, end) give bytes `fill`. To be
    given as the reply hook; `told`: how often it did.
    """

    def __init__(self, start: int, end: int, fill: int = ord("D")) -> None:
        self.start, self.end, self.fill = start, end, fill
        self.told = 0

    def __call__(self, name: str, reply: bytes, number: int, call: bytes) -> Answer:
        if name != "READ":
            return None
        asked = Range.of(call)
        first, last = max(asked.offset, self.start), min(asked.offset + asked.count, self.end)
        reader = Reader(reply, REPLY_HEADER)
        if first >= last or reader.word():
            return None
        attributes = 84 if reader.word() else 0
        at = REPLY_HEADER + 8 + attributes + 12
        self.told += 1
        data = bytes([self.fill]) * (last - first)
        return reply[: at + first - asked.offset] + data + reply[at + last - asked.offset :]


class Jukebox:
    """A server that puts off the calls of these names, the first `times` of each. To be given as the call hook."""

    def __init__(self, *names: str, times: int = 3) -> None:
        self.left = Counter(dict.fromkeys(names, times))

    def __call__(self, name: str, call: bytes, number: int) -> Answer:
        if self.left[name] <= 0:
            return None
        self.left[name] -= 1
        return JUKEBOX


class Verifier:
    """A server that is started again behind a living connection: at each `at`th reply to `name` it loses what it has
    not written down, and tells another verifier from then on; `changes`: how often it may. To be given as the reply
    hook. `epoch`: how often it did; `owed`: the ranges that are not written down. `lose`: makes it so in the file.
    """

    def __init__(self, *, name: str = "WRITE", at: int = 40, changes: int = 1) -> None:
        self.lose: Callable[[], None] = lambda: None
        self.name, self.at, self.changes = name, at, changes
        self.epoch = 0
        self.owed: list[Range] = []

    def __call__(self, name: str, reply: bytes, number: int, call: bytes) -> Answer:
        if name not in ("WRITE", "COMMIT") or Reader(reply, REPLY_HEADER).word():
            return None
        if name == self.name and self.epoch < self.changes and number % self.at == 0:
            self.epoch += 1
            self.lose()
            self.owed.clear()
        if name == "WRITE":
            self.owed.append(Range.of(call))
        else:
            self.owed.clear()
        return reply[:-8] + struct.pack(">Q", 0x1234 + self.epoch)
