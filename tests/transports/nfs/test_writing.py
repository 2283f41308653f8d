"""What NFS servers may answer to WRITE and COMMIT: every byte is in the file, and durable, when a flush has ended."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mpconv import transports
from mpconv.model.errors import Fatal, Restarted, Retryable
from mpconv.transports.base import Access, Transport
from mpconv.transports.nfs.verifier import DATA_SYNC, FILE_SYNC, UNSTABLE, Verifiers
from tests.support.nfs_proxy import Answer, CallHook, Range, ReplyHook, Verifier, nfs_proxy
from tests.support.servers import NfsServer

MiB = 1 << 20
SIZE = 4 * MiB
A, B = b"AAAAAAAA", b"BBBBBBBB"


def ask(
    nfs: NfsServer,
    name: str,
    work: Callable[[Transport], Coroutine[Any, Any, None]],
    call: CallHook | None = None,
    reply: ReplyHook | None = None,
) -> dict[str, int]:
    """`work` on a new file, through a proxy; the calls that came."""

    async def run(url: str) -> None:
        store = await transports.connect(url, Access.WRITE, create_size=SIZE)
        try:
            await work(store)
        finally:
            await store.close()

    with nfs_proxy(nfs.port, call, reply) as proxy:
        asyncio.run(run(proxy.url(nfs.url(name))))
        return proxy.calls


def shortened(call: bytes, count: int) -> bytes:
    """A WRITE of its first bytes alone."""
    asked = Range.of(call)
    at = len(call) - -(-asked.count // 4) * 4 - 12
    return call[:at] + struct.pack(">3I", count, 0, count) + call[at + 12 : at + 12 + count] + bytes(-count % 4)


@pytest.mark.parametrize("most", [1, 4095, MiB // 3, MiB - 1])
def test_what_a_server_did_not_take_is_written_after_it(nfs: NfsServer, tmp_path: Path, most: int) -> None:
    data = bytearray(os.urandom(SIZE if most > 1 else 64))

    def call(name: str, body: bytes, number: int) -> Answer:
        asked = Range.of(body) if name == "WRITE" else None
        return shortened(body, most) if asked is not None and asked.count > most else None

    async def work(store: Transport) -> None:
        await asyncio.gather(
            *(store.write(at, memoryview(data)[at : at + 2 * MiB]) for at in range(0, len(data), 2 * MiB))
        )
        await store.flush()

    calls = ask(nfs, tmp_path.name, work, call)
    assert nfs.path(tmp_path.name).read_bytes() == data.ljust(SIZE, b"\0")
    assert calls["WRITE"] >= len(data) // most


@pytest.mark.parametrize("count", [0, MiB + 1, (1 << 32) - 1])
def test_a_count_that_cannot_be(nfs: NfsServer, tmp_path: Path, count: int) -> None:
    def reply(name: str, body: bytes, number: int, call: bytes) -> Answer:
        return body[:-16] + struct.pack(">I", count) + body[-12:] if name == "WRITE" else None

    async def work(store: Transport) -> None:
        with pytest.raises(Fatal, match=f"the server took {count} of {MiB} bytes"):
            await store.write(0, memoryview(bytearray(MiB)))

    ask(nfs, tmp_path.name, work, reply=reply)


@pytest.mark.parametrize("stability", [DATA_SYNC, FILE_SYNC])
def test_what_is_written_down_at_once_needs_no_verifier(nfs: NfsServer, tmp_path: Path, stability: int) -> None:
    """Every second write is, and has a verifier that means nothing."""
    keeps = Verifier(at=1, changes=0)

    def reply(name: str, body: bytes, number: int, call: bytes) -> Answer:
        if name == "WRITE" and number % 2:
            return body[:-12] + struct.pack(">I", stability) + os.urandom(8)
        return keeps(name, body, number, call)

    async def work(store: Transport) -> None:
        for at in range(0, SIZE, MiB):
            await store.write(at, memoryview(bytearray(b"x" * MiB)))
        await store.flush()

    assert ask(nfs, tmp_path.name, work, reply=reply)["WRITE"] == SIZE // MiB


@pytest.mark.parametrize("when", ["at the second write", "at the COMMIT"])
def test_a_restart_ends_the_connection(nfs: NfsServer, tmp_path: Path, when: str) -> None:
    verifier = Verifier(**{"at the COMMIT": {"name": "COMMIT", "at": 1}}.get(when, {"at": 2}))

    async def work(store: Transport) -> None:
        with pytest.raises(Restarted, match="before it had made it durable"):
            await store.write(0, memoryview(bytearray(MiB)))
            await store.write(MiB, memoryview(bytearray(MiB)))
            await store.flush()
        for again in (store.flush(), store.write(0, memoryview(bytearray(MiB))), store.zero(0, MiB)):
            with pytest.raises(Retryable):
                await again

    ask(nfs, tmp_path.name, work, reply=verifier)


def test_a_restart_with_nothing_to_lose(nfs: NfsServer, tmp_path: Path) -> None:
    verifier = Verifier(at=2, changes=9)

    async def work(store: Transport) -> None:
        for at in range(0, SIZE, MiB):
            await store.write(at, memoryview(bytearray(b"x" * MiB)))
            await store.flush()

    ask(nfs, tmp_path.name, work, reply=verifier)
    assert verifier.epoch == 2


def test_what_a_commit_covers() -> None:
    one = Verifiers()
    assert one.committed(A, one.asked()) and one.known, "nothing is owed"
    assert one.committed(B, one.asked()), "as with another start in between"
    assert one.wrote(B, UNSTABLE) and one.wrote(A, FILE_SYNC) and one.wrote(A, DATA_SYNC)
    covered = one.asked()
    assert one.wrote(B, UNSTABLE), "answered while the COMMIT is under way"
    assert one.committed(B, covered)
    assert not one.wrote(A, UNSTABLE), "the second one is not covered"
    assert not one.committed(A, one.asked()), "and stays lost"


def test_holes_are_owed_too() -> None:
    one = Verifiers()
    assert not one.known and one.committed(A, one.asked())
    one.holds()
    assert not one.committed(B, one.asked())
