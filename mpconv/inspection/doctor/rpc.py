"""Questions that an NFS server and its portmapper answer to anybody, before anything is mounted (RFC 1833, RFC 1813):
which ports, which versions, which exports. One connection a question; nothing is kept.

Everything here may raise `OSError` and `EOFError` for the connection, `TimeoutError`, `Malformed` for nonsense, and
`Declined` for a server that answers and does not serve.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Iterator

from msgspec import Struct

from mpconv.transports.nfs.v42 import compound
from mpconv.transports.nfs.v42.client import stream
from mpconv.transports.nfs.v42.compound import Refused, Reply
from mpconv.transports.nfs.v42.xdr import Malformed, Reader, words

PORTMAPPER_PORT, NFS_PORT = 111, 2049
_PORTMAPPER, NFS, MOUNT = 100000, 100003, 100005
_CALL, _TCP = 0, 6
_GET_PORT, _EXPORTS = 3, 5
_LARGEST = 1 << 20
_MOST = 10_000
"""Exports, or clients of one, that are read of an answer."""
_MINORS = (0, 1, 2)
_MINOR_MISMATCH = 10021


class Declined(Exception):
    """The server answers, and does not serve this program or version, or not us."""


class Export(Struct, frozen=True):
    """A directory, and whom the server names as its clients; none for everybody."""

    path: str
    clients: list[str]


class Server(Struct, frozen=True):
    """Who is asked, and for how many seconds each time."""

    host: str
    seconds: float

    async def port_of(self, program: int, version: int) -> int:
        """What its portmapper says; 0: nobody serves that there."""
        answer = await self._ask(PORTMAPPER_PORT, _PORTMAPPER, 2, _GET_PORT, words(program, version, _TCP, 0))
        return answer.word()

    async def exports(self, port: int) -> list[Export]:
        """What its mount daemon tells to anybody."""
        answer = await self._ask(port, MOUNT, 3, _EXPORTS)
        found = []
        for _ in _list(answer):
            path = answer.opaque(1024).decode(errors="replace")
            found.append(Export(path, [answer.opaque(255).decode(errors="replace") for _ in _list(answer)]))
        return found

    async def versions(self, port: int) -> list[str]:
        """Which of NFS 3, 4.0, 4.1 and 4.2 it serves there. Declined when it serves none of them, and says so."""
        found = []
        declined: Declined | None = None
        try:
            await self._ask(port, NFS, 3, 0)
            found.append("3")
        except Declined as error:
            declined = error
        for minor in _MINORS:
            if await self._offers(port, minor):
                found.append(f"4.{minor}")
        if not found and declined is not None:
            raise declined
        return found

    async def _offers(self, port: int, minor: int) -> bool:
        """Without a session an operation of 4.1 and 4.2 is refused, but not for the version."""
        xid = random.getrandbits(31)
        who = compound.credential(os.getuid(), os.getgid())
        data = await self._said(port, compound.call(xid, who, [compound.put_root()], minor=minor))
        try:
            Reply(data, xid).skip(compound.Op.PUTROOTFH)
        except Refused as error:
            return error.status != _MINOR_MISMATCH
        except Malformed:
            return False
        return True

    async def _ask(self, port: int, program: int, version: int, procedure: int, arguments: bytes = b"") -> Reader:
        xid = random.getrandbits(31)
        nobody = words(0, 0, 0, 0)
        body = words(xid, _CALL, 2, program, version, procedure) + nobody + arguments
        return accepted(await self._said(port, compound.record(body)), xid)

    async def _said(self, port: int, record: bytes) -> bytes:
        """The answer to one call."""
        async with asyncio.timeout(self.seconds):
            reader, writer = await stream(self.host, port)
            try:
                writer.write(record)
                whole = b""
                while True:
                    mark = int.from_bytes(await reader.readexactly(4))
                    if len(whole) + (mark & 0x7FFFFFFF) > _LARGEST:
                        raise Malformed("an answer without end")
                    whole += await reader.readexactly(mark & 0x7FFFFFFF)
                    if mark >> 31:
                        return whole
            finally:
                writer.transport.abort()


def accepted(data: bytes, xid: int) -> Reader:
    """Where the results of a call begin. Declined for one that was not done."""
    reader = Reader(data)
    if reader.word() != xid or reader.word() != 1:
        raise Malformed("an answer to no question")
    if reader.word() != 0:
        reason = reader.word()
        raise Declined("it serves only ports below 1024, or other users" if reason == 1 else "another version of RPC")
    reader.word()
    reader.opaque(400)
    status = reader.word()
    if status != 0:
        raise Declined({1: "no such program", 2: "not in this version"}.get(status, f"RPC status {status}"))
    return reader


def _list(reader: Reader) -> Iterator[None]:
    """Once for each element of an XDR list."""
    for _ in range(_MOST):
        if not reader.word():
            return
        yield
    raise Malformed("a list without end")


def may_use_low_ports() -> bool:
    """Whether this process may send from ports below 1024."""
    for port in random.sample(range(665, 1024), 16):
        with socket.socket() as one:
            try:
                one.bind(("", port))
                return True
            except PermissionError:
                return False
            except OSError:
                continue
    return True
