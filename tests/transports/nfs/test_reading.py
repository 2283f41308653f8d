"""READ over NFSv3 where servers give less than they are asked for, which RFC 1813 allows anywhere."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.model.units import KiB, MiB
from mpconv.transports.base import Access
from tests.support.nfs_proxy import Answer, Range, nfs_proxy
from tests.support.servers import NfsServer

SIZE = 4 * MiB


@pytest.mark.parametrize("most", [24 * KiB, 100_001, MiB - 1])
def test_what_a_server_did_not_give_is_read_after_it(nfs: NfsServer, most: int, tmp_path: Path) -> None:
    """And nobody waits for a second for each answer, because more bytes were to come."""
    data, back = os.urandom(SIZE), bytearray(SIZE)
    nfs.path(tmp_path.name).write_bytes(data)

    def call(name: str, body: bytes, number: int) -> Answer:
        if name != "READ" or Range.of(body).count <= most:
            return None
        return body[:-4] + struct.pack(">I", most)

    async def run(url: str) -> None:
        store = await transports.connect(url, Access.READ)
        try:
            async with asyncio.timeout(60):
                for at in range(0, SIZE, 2 * MiB):
                    await store.read_into(at, memoryview(back)[at : at + 2 * MiB])
        finally:
            await store.close()

    with nfs_proxy(nfs.port, call) as proxy:
        asyncio.run(run(proxy.url(nfs.url(tmp_path.name))))
        assert proxy.calls["READ"] >= SIZE // most
    assert back == data
