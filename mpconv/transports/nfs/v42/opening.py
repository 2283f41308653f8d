"""One file on an NFSv4.2 server, found and opened beside another protocol's connection that has it open already."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from mpconv.transports.nfs.v42 import compound
from mpconv.transports.nfs.v42.client import Client, dial
from mpconv.transports.nfs.v42.compound import Attributes, Op, Refused, What

Read = Callable[[int, memoryview], Awaitable[None]]
"""Fill a buffer from an offset of the same file, over the other protocol: a transport's `read_into`."""
Write = Callable[[int, memoryview], Awaitable[None]]
"""Store a buffer in the same way: a transport's `write`."""


class Lie(Exception):
    """The server said what cannot be."""


class Unsure(Exception):
    """There is no telling whether the server is right."""


class Where(Struct, frozen=True):
    """A file as the other protocol names it, and as whom."""

    host: str
    port: int
    path: str
    uid: int
    gid: int


async def open_file(
    where: Where, same: Callable[[Attributes], bool], *, seconds: float, writing: bool = False
) -> tuple[Client, Attributes]:
    """A session with that file open, and what the server tells of it. What it raises leaves nothing behind.

    `same`: whether that is the file meant. `seconds`: for all of this, and for any one answer later.
    """
    client: Client | None = None
    try:
        async with asyncio.timeout(seconds):
            client = await dial(where.host, where.port, where.uid, where.gid, seconds)
            await client.begin()
            attributes = await _find(client, where.path, same)
            await client.open(writing=writing)
    except Exception:
        if client is not None:
            await client.close()
        raise
    except BaseException:
        if client is not None:
            client.hang_up()
        raise
    return client, attributes


async def _find(client: Client, path: str, same: Callable[[Attributes], bool]) -> Attributes:
    """Look the path up; a server's tree for version 4 may begin further down than its exports are named."""
    names = [name for name in path.encode(errors="surrogateescape").split(b"/") if name not in (b"", b".")]
    missing: Refused | None = None
    while names:
        try:
            attributes = await client.look_up(names)
            if same(attributes):
                return attributes
        except Refused as error:
            if error.status not in (compound.NO_ENTRY, compound.NOT_A_DIRECTORY, compound.ACCESS):
                raise
            missing = missing or error
        names = names[1:]
    raise missing or Unsure("it is another file, or has just changed")


async def seek(client: Client, offset: int, what: What, size: int) -> int:
    """Where the next data or hole begins, `size` (the file's) where none follows. Lie for what cannot be."""
    try:
        ended, found = await client.seek(offset, what)
    except Refused as error:
        if (error.status, error.operation, what) != (compound.NO_MORE, Op.SEEK, What.DATA):
            raise
        return size
    if ended and what is What.DATA and found == offset:  # so says ganesha that no more follows
        return size
    if not offset <= found <= size or (ended and found != size):
        raise Lie(f"asked for {what.name.lower()} from byte {offset} on, the server names byte {found}")
    return found


def said(error: BaseException) -> str:
    """A clause."""
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
