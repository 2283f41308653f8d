"""A relay between an initiator and a real target: it notes every command, and can change commands and answers so that
the target behaves as others do. It knows no digests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from mpconv.transports import iscsi
from mpconv.transports.base import Access
from mpconv.transports.iscsi import IscsiTransport

INQUIRY, UNMAP, EXTENDED_COPY, READ, WRITE, WRITE_SAME, SERVICE_ACTION = 0x12, 0x42, 0x83, 0x88, 0x8A, 0x93, 0x9E
_HEADER, _COMMAND, _RESPONSE, _DATA_IN = 48, 0x01, 0x21, 0x25
UNKNOWN = 0xC0

Change = Callable[[bytearray, bytearray], None]


def as_it_is(cdb: bytearray, data: bytearray) -> None:
    """A change that is none."""


@dataclass
class Relay:
    """Between initiator and target. `command` and `answer` may change the data, `command` the CDB too; `commands`: what
    the initiator sent, before it was changed; `together`: the most commands of each code that were under way at once.
    """

    url: str
    command: Change = as_it_is
    answer: Change = as_it_is
    commands: list[tuple[bytes, bytes]] = field(default_factory=list)
    together: Counter[int] = field(default_factory=Counter)
    _under_way: dict[bytes, bytes] = field(default_factory=dict)

    def of(self, code: int) -> list[tuple[bytes, bytes]]:
        """The commands of that code, in order."""
        return [(cdb, data) for cdb, data in self.commands if cdb[0] == code]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.url.split("/")[2].partition(":")
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(self._pass(reader, back, self._sent), self._pass(there, writer, self._answered))

    @staticmethod
    async def _pass(
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        look: Callable[[bytearray, bytearray], None],
    ) -> None:
        try:
            while True:
                header = bytearray(await source.readexactly(_HEADER))
                extra = await source.readexactly(header[4] * 4)
                data = bytearray(await source.readexactly(-(-int.from_bytes(header[5:8]) // 4) * 4))
                look(header, data)
                sink.write(header + extra + data)
                await sink.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            sink.close()

    def _sent(self, header: bytearray, data: bytearray) -> None:
        if header[0] & 0x3F != _COMMAND:
            return
        cdb = header[32:48]
        self.commands.append((bytes(cdb), bytes(data)))
        self._under_way[bytes(header[16:20])] = bytes(cdb)
        count = sum(other[0] == cdb[0] for other in self._under_way.values())
        self.together[cdb[0]] = max(self.together[cdb[0]], count)
        self.command(cdb, data)
        header[32:48] = cdb

    def _answered(self, header: bytearray, data: bytearray) -> None:
        kind, tag = header[0] & 0x3F, bytes(header[16:20])
        if kind == _DATA_IN:
            self.answer(bytearray(self._under_way[tag]), data)
        if kind == _RESPONSE or (kind == _DATA_IN and header[1] & 1):
            self._under_way.pop(tag, None)


@contextlib.asynccontextmanager
async def relayed(
    url: str, command: Change = as_it_is, answer: Change = as_it_is
) -> AsyncIterator[tuple[IscsiTransport, Relay]]:
    relay = Relay(url, command, answer)
    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as server:
        old, new = url.split("/")[2], f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        store = await iscsi.connect(url.replace(old, new), Access.WRITE)
        try:
            yield store, relay
        finally:
            await store.close()


def page(number: int, at: int, value: bytes) -> Change:
    """A target with these bytes in one of its pages of vital product data."""

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[0] == INQUIRY and cdb[1] == 1 and cdb[2] == number:
            data[at : at + len(value)] = value

    return change
