"""A relay between an initiator and a real target: it notes every command, and can change commands and answers. It knows
no digests.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from mpconv.transports.base import Access
from mpconv.transports.iscsi import store as iscsi
from mpconv.transports.iscsi.store import IscsiTransport
from tests.support.relay import Changes, iscsi_length, relay

INQUIRY, UNMAP, EXTENDED_COPY, READ, WRITE, WRITE_SAME, SERVICE_ACTION = 0x12, 0x42, 0x83, 0x88, 0x8A, 0x93, 0x9E
WRITE_SAME10 = 0x41
_HEADER, _COMMAND, _RESPONSE, _DATA_IN = 48, 0x01, 0x21, 0x25
UNKNOWN = 0xC0

Change = Callable[[bytearray, bytearray], None]


def as_it_is(cdb: bytearray, data: bytearray) -> None:
    """A change that is none."""


@dataclass
class Listener:
    """Hears initiator and target. `command` and `answer` may change the data, `command` the CDB too; `commands`: what
    the initiator sent, before it was changed; `together`: the most commands of each code that were under way at once.
    """

    command: Change = as_it_is
    answer: Change = as_it_is
    commands: list[tuple[bytes, bytes]] = field(default_factory=list)
    together: Counter[int] = field(default_factory=Counter)
    _under_way: dict[bytes, bytes] = field(default_factory=dict)

    def of(self, code: int) -> list[tuple[bytes, bytes]]:
        """The commands of that code, in order."""
        return [(cdb, data) for cdb, data in self.commands if cdb[0] == code]

    def sent(self, message: bytearray) -> None:
        """By the initiator."""
        if message[0] & 0x3F != _COMMAND:
            return
        at = _HEADER + message[4] * 4
        cdb, data = message[32:48], message[at:]
        self.commands.append((bytes(cdb), bytes(data)))
        self._under_way[bytes(message[16:20])] = bytes(cdb)
        count = sum(other[0] == cdb[0] for other in self._under_way.values())
        self.together[cdb[0]] = max(self.together[cdb[0]], count)
        self.command(cdb, data)
        message[32:48], message[at:] = cdb, data

    def answered(self, message: bytearray) -> None:
        """By the target."""
        kind, tag = message[0] & 0x3F, bytes(message[16:20])
        if kind == _DATA_IN:
            at = _HEADER + message[4] * 4
            data = message[at:]
            self.answer(bytearray(self._under_way[tag]), data)
            message[at:] = data
        if kind == _RESPONSE or (kind == _DATA_IN and message[1] & 1):
            self._under_way.pop(tag, None)


@contextlib.asynccontextmanager
async def relayed(
    url: str, command: Change = as_it_is, answer: Change = as_it_is
) -> AsyncIterator[tuple[IscsiTransport, Listener]]:
    listener = Listener(command, answer)
    old = url.split("/")[2]
    host, _, port = old.partition(":")
    with relay(host, int(port), Changes(iscsi_length, listener.sent, listener.answered)) as between:
        store = await iscsi.connect(url.replace(old, f"127.0.0.1:{between.port}"), Access.WRITE)
        try:
            yield store, listener
        finally:
            await store.close()


def page(number: int, at: int, value: bytes) -> Change:
    """A target with these bytes in one of its pages of vital product data."""

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[0] == INQUIRY and cdb[1] == 1 and cdb[2] == number:
            data[at : at + len(value)] = value

    return change
