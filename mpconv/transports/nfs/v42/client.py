"""One NFSv4.2 session with one file open, to find and make its holes: no callbacks, one call at a time.

Everything here may raise: `OSError` and `EOFError` for the connection, `TimeoutError` for a server that is silent,
`Refused` for its errors, `Malformed` for nonsense.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import struct

from mpconv.transports.nfs.v42 import compound
from mpconv.transports.nfs.v42.compound import Attributes, Op, Refused, Reply, What
from mpconv.transports.nfs.v42.xdr import Malformed

_LOOKUPS = 8
"""Components of a path in one compound: servers limit the operations, some to 16."""
_LARGEST_RECORD = compound.LARGEST_REPLY + 1024
_LOW_PORTS = range(665, 1024)
_TRIES = 16
_GOODBYE_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)
"""Hanging up leaves no port waiting: those below 1024 are few."""


class Client:
    """A connection. `seconds`: how long any one answer may take; may be changed."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int, gid: int, seconds: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._who = compound.credential(uid, gid)
        self.seconds = seconds
        self._xid = random.getrandbits(31)
        self._number = 0
        self._in_step = True
        self._client: int | None = None
        self._session: bytes | None = None
        self._handle = b""
        self._state: bytes | None = None

    async def _call(self, *operations: bytes) -> Reply:
        if not self._in_step:
            raise ConnectionAbortedError(errno.ECONNABORTED, "an earlier answer is missing")
        self._in_step = False
        self._xid = (self._xid + 1) & 0xFFFFFFFF
        self._writer.write(compound.call(self._xid, self._who, list(operations)))
        async with asyncio.timeout(self.seconds):
            reply = Reply(await self._record(), self._xid)
        self._in_step = True
        return reply

    async def _record(self) -> bytes:
        """All fragments of one answer."""
        whole = b""
        while True:
            mark = int.from_bytes(await self._reader.readexactly(4))
            count = mark & 0x7FFFFFFF
            if len(whole) + count > _LARGEST_RECORD or (not count and not mark):
                raise Malformed(f"an answer of {len(whole) + count} bytes")
            whole += await self._reader.readexactly(count)
            if mark >> 31:
                return whole

    async def _in_session(self, *operations: bytes) -> Reply:
        """A compound after its SEQUENCE, which renews the lease too."""
        if self._session is None:
            raise ConnectionAbortedError(errno.ECONNABORTED, "there is no session")
        self._number = (self._number + 1) & 0xFFFFFFFF
        reply = await self._call(compound.sequence(self._session, self._number), *operations)
        reply.took_sequence(self._session, self._number)
        return reply

    async def begin(self) -> None:
        """Make the session."""
        owner = b"mpconv " + os.urandom(16).hex().encode()
        reply = await self._call(compound.exchange_id(os.urandom(8), owner))
        self._client, number = reply.exchanged()
        reply = await self._call(compound.create_session(self._client, number))
        self._session = reply.session()
        (await self._in_session(compound.reclaim_complete())).skip(Op.RECLAIM_COMPLETE)

    async def look_up(self, names: list[bytes]) -> Attributes:
        """Go to a file; it becomes the one that everything else is about."""
        start, first = compound.put_root(), Op.PUTROOTFH
        while True:
            now, names = names[:_LOOKUPS], names[_LOOKUPS:]
            lookups = [compound.lookup(name) for name in now]
            reply = await self._in_session(start, *lookups, compound.get_handle(), compound.get_attributes())
            reply.skip(first, *(Op.LOOKUP for _ in now))
            self._handle = reply.handle()
            attributes = reply.attributes()
            if not names:
                return attributes
            start, first = compound.put_handle(self._handle), Op.PUTFH

    async def open(self, *, writing: bool) -> None:
        """Open it: without that some servers answer SEEK with nonsense."""
        assert self._client is not None
        reply = await self._in_session(
            compound.put_handle(self._handle), compound.open_file(self._client, b"mpconv", writing=writing)
        )
        reply.skip(Op.PUTFH)
        self._state = reply.state()

    async def attributes(self) -> Attributes:
        """Of the file, as they are now."""
        reply = await self._in_session(compound.put_handle(self._handle), compound.get_attributes())
        reply.skip(Op.PUTFH)
        return reply.attributes()

    async def seek(self, offset: int, what: What) -> tuple[bool, int]:
        """Whether the end of the file came first, and where what was sought begins. NO_MORE may be refused."""
        assert self._state is not None
        reply = await self._in_session(compound.put_handle(self._handle), compound.seek(self._state, offset, what))
        reply.skip(Op.PUTFH)
        return reply.found()

    async def read(self, offset: int, count: int) -> bytes:
        """Not more than `count` bytes."""
        assert self._state is not None
        reply = await self._in_session(compound.put_handle(self._handle), compound.read(self._state, offset, count))
        reply.skip(Op.PUTFH)
        return reply.data()

    async def deallocate(self, offset: int, length: int) -> Attributes:
        """Make a range a hole, and tell of the file as it is then. The file must be open for writing."""
        assert self._state is not None
        reply = await self._in_session(
            compound.put_handle(self._handle),
            compound.deallocate(self._state, offset, length),
            compound.get_attributes(),
        )
        reply.skip(Op.PUTFH, Op.DEALLOCATE)
        return reply.attributes()

    async def close(self) -> None:
        """Say goodbye, if the server still listens, and hang up. Never raises, but when cancelled."""
        try:
            with contextlib.suppress(OSError, EOFError, Refused, Malformed):
                async with asyncio.timeout(min(self.seconds, _GOODBYE_SECONDS)):
                    await self._say_goodbye()
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """At once, without a word."""
        self._in_step = False
        self._writer.transport.abort()

    async def _say_goodbye(self) -> None:
        if self._state is not None:
            await self._in_session(compound.put_handle(self._handle), compound.close(self._state))
        if self._session is not None:
            await self._call(compound.destroy_session(self._session))
        if self._client is not None:
            await self._call(compound.destroy_client(self._client))


async def dial(host: str, port: int, uid: int, gid: int, seconds: float) -> Client:
    """A client that is connected and has said nothing yet."""
    return Client(*await stream(host, port), uid, gid, seconds)


async def stream(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, from a port below 1024 where this process may: many servers take no others."""
    loop = asyncio.get_running_loop()
    last: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        for _ in range(_TRIES):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                _take_low_port(connection)
                await loop.sock_connect(connection, address)
                return await asyncio.open_connection(sock=connection)
            except OSError as error:
                connection.close()
                last = error
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    break
            except BaseException:
                connection.close()
                raise
    raise last


def _take_low_port(connection: socket.socket) -> None:
    """Bind to a free one; where that is not allowed, leave it as it is."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for port in random.sample(_LOW_PORTS, _TRIES):
        try:
            connection.bind(("", port))
            return
        except PermissionError:
            return
        except OSError:
            continue
