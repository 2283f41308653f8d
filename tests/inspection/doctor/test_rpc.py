"""What servers answer before anything is mounted, also nonsense: it is read or refused, and has an end."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from mpconv.inspection.doctor.rpc import Declined, Export, Server, accepted
from mpconv.transports.nfs.v42.xdr import Malformed, opaque, words

XID = 7
SECONDS = 5.0


def reply(*, accept: int = 0, results: bytes = b"") -> bytes:
    return words(XID, 1, 0, 0, 0, accept) + results


def test_results_begin_after_the_header() -> None:
    assert accepted(reply(results=words(2049)), XID).word() == 2049


@pytest.mark.parametrize(
    ("data", "words_of_it"),
    [
        (reply(accept=1), "no such program"),
        (reply(accept=2, results=words(3, 4)), "not in this version"),
        (reply(accept=5), "RPC status 5"),
        (words(XID, 1, 1, 1, 5), "ports below 1024"),
        (words(XID, 1, 1, 0, 2, 2), "another version of RPC"),
    ],
)
def test_what_is_declined(data: bytes, words_of_it: str) -> None:
    with pytest.raises(Declined, match=words_of_it):
        accepted(data, XID)


@pytest.mark.parametrize("data", [b"", words(XID), words(8, 1, 0, 0, 0, 0), words(XID, 0, 0, 0, 0, 0), reply()[:-1]])
def test_nonsense(data: bytes) -> None:
    with pytest.raises(Malformed):
        accepted(data, XID)


@contextlib.asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    """A server on a port of its own; `answer` is given a call without its mark, and returns all that is sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4)) & 0x7FFFFFFF
        writer.write(answer(await reader.readexactly(length)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def whole(call: bytes, results: bytes, *, parts: int = 1) -> bytes:
    """A reply to that call, in so many fragments."""
    body = call[:4] + words(1, 0, 0, 0, 0) + results
    step = -(-len(body) // parts)
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    marks = [0] * (len(pieces) - 1) + [0x80000000]
    return b"".join(struct.pack(">I", mark | len(piece)) + piece for mark, piece in zip(marks, pieces, strict=True))


def exports(answer: Callable[[bytes], bytes]) -> list[Export]:
    async def ask() -> list[Export]:
        async with answering(answer) as port:
            return await Server("127.0.0.1", SECONDS).exports(port)

    return asyncio.run(ask())


TWO = (
    words(1) + opaque(b"/a") + words(1) + opaque(b"10.0.0.0/24") + words(1) + opaque(b"host") + words(0)
    + words(1) + opaque(b"/srv/b c") + words(0)
    + words(0)
)  # fmt: skip


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_exports_and_whom_they_are_for(parts: int) -> None:
    found = exports(lambda call: whole(call, TWO, parts=parts))
    assert found == [Export("/a", ["10.0.0.0/24", "host"]), Export("/srv/b c", [])]


def test_a_list_without_end() -> None:
    with pytest.raises(Malformed):
        exports(lambda call: whole(call, (words(1) + opaque(b"/a") + words(0)) * 10_001))


def test_an_answer_without_end() -> None:
    with pytest.raises(Malformed, match="without end"):
        exports(lambda call: struct.pack(">I", 0x80000000 | 1 << 30))


def test_a_server_that_hangs_up() -> None:
    with pytest.raises(EOFError):
        exports(lambda call: b"\x80")


def test_versions_are_told_apart() -> None:
    """NFSv3 and 4.1: an operation without a session is refused, another minor version is refused otherwise."""

    def answer(call: bytes) -> bytes:
        version = int.from_bytes(call[16:20])
        if version == 3:
            return whole(call, b"")
        tag_at = 24 + 8 + (int.from_bytes(call[28:32]) + 3) // 4 * 4 + 8
        minor = int.from_bytes(call[tag_at + 4 : tag_at + 8])
        status = 10071 if minor == 1 else 10021
        return whole(call, words(status, 0, 1, 24, status) if minor == 1 else words(status, 0, 0))

    async def ask() -> list[str]:
        async with answering(answer) as port:
            return await Server("127.0.0.1", SECONDS).versions(port)

    assert asyncio.run(ask()) == ["3", "4.1"]
