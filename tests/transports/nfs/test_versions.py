"""Servers without NFSv4.2: what only it can do is done without, silently and at once. And what any of them tells."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.model.extent import Extent
from mpconv.model.units import MiB
from mpconv.transports.base import Access
from mpconv.transports.native.libnfs import Library
from tests.conftest import identical, mpconv
from tests.support.servers import NfsServer

SIZE = 16 * MiB
OFFERS = {"3": {"protocols": "3"}, "3-4.0": {"minor_versions": "0"}, "3-4.1": {"minor_versions": "0,1"}}
QUICK = 0.25
"""Seconds: 1 to 3 ms on an idle machine, and far less than any time limit there is."""


@pytest.fixture(scope="module", params=OFFERS)
def old_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    with NfsServer(tmp_path_factory.mktemp("old"), **OFFERS[request.param]) as server:
        yield server


def sparse(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(3 * MiB + 5)
        file.write(os.urandom(MiB))
        os.fsync(file.fileno())
    return path


def test_no_map_of_holes_costs_next_to_nothing(old_server: NfsServer, caplog: pytest.LogCaptureFixture) -> None:
    path = sparse(old_server.path("source"))

    async def run() -> None:
        store = await transports.connect(old_server.url(path.name), Access.READ)
        started = time.monotonic()
        for at in range(0, SIZE, MiB):
            assert await store.block_status(at, MiB) == [Extent(at, MiB)]
        assert time.monotonic() - started < QUICK
        await store.close()

    with caplog.at_level(logging.INFO, "mpconv"):
        asyncio.run(run())
    assert [record.message.partition(" of ")[0] for record in caplog.records] == ["no map"], "one line"
    assert caplog.records[0].levelno == logging.INFO


def test_no_zeros_cost_next_to_nothing(old_server: NfsServer, caplog: pytest.LogCaptureFixture) -> None:
    path = old_server.path("target")
    path.write_bytes(b"x" * SIZE)

    async def run() -> None:
        store = await transports.connect(old_server.url(path.name), Access.WRITE)
        started = time.monotonic()
        for at in range(0, SIZE, MiB):
            assert not await store.zero(at, MiB)
        assert time.monotonic() - started < QUICK
        assert store.zeroing.startswith("zeros are written (no DEALLOCATE: ")
        await store.close()

    with caplog.at_level(logging.INFO, "mpconv"):
        asyncio.run(run())
    assert [record.message.partition(" in ")[0] for record in caplog.records] == ["nothing is deallocated"], "one line"
    assert path.read_bytes() == b"x" * SIZE


def test_copies_from_and_into_such_a_server(old_server: NfsServer, tmp_path: Path) -> None:
    source, there, back = sparse(tmp_path / "source.img"), old_server.path("there"), tmp_path / "back.img"
    there.write_bytes(b"x" * SIZE)
    for arguments in (("-n", source, old_server.url("there")), (old_server.url("there"), back)):
        done = mpconv("convert", "-f", "raw", "-O", "raw", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
    assert identical(source, there)
    assert identical(source, back)


def qemu_disk_size(server: NfsServer, name: str) -> int:
    command = ["qemu-img", "info", "--output=json", "-f", "raw", server.qemu_url(name)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    return int(found["actual-size"])


@pytest.mark.parametrize("size", [0, 1, SIZE, SIZE + 777])
def test_disk_size_is_what_qemu_img_says(tmp_path: Path, size: int) -> None:
    """A server of its own: the last one that was started is the one that qemu-img finds."""
    with NfsServer(tmp_path) as server:
        path = server.path("image")
        path.write_bytes(b"x" * min(size, 2 * MiB + 1))
        os.truncate(path, size)
        os.sync()

        async def run() -> int | None:
            store = await transports.connect(server.url("image"), Access.READ)
            found = await store.disk_size()
            await store.close()
            return found

        assert asyncio.run(run()) == qemu_disk_size(server, "image") == path.stat().st_blocks * 512


def test_disk_size_is_the_present_one(nfs: NfsServer) -> None:
    async def run() -> None:
        store = await transports.connect(nfs.url("growing"), Access.WRITE, create_size=SIZE)
        assert await store.disk_size() == 0
        await store.write(0, memoryview(bytearray(b"x" * (2 * MiB))))
        await store.flush()
        assert await store.disk_size() == 2 * MiB
        assert await store.zero(0, MiB)
        await store.flush()
        assert await store.disk_size() == MiB
        await store.close()

    asyncio.run(run())


def test_a_disk_size_that_nobody_tells(tmp_path: Path) -> None:
    with NfsServer(tmp_path) as server:
        path = sparse(server.path("image"))

        async def run() -> None:
            store = await transports.connect(server.url(path.name), Access.READ)
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            assert await store.disk_size() is None
            await store.close()

        asyncio.run(run())


def test_nfs_4_connections_of_one_second_leave_each_other_alone(nfs: NfsServer) -> None:
    """To the server they would be one client that has begun anew, and what the first one has open would be closed."""
    path = sparse(nfs.path("four.img"))

    async def run() -> None:
        stores = [await transports.connect(f"{nfs.url(path.name)}&version=4", Access.READ) for _ in range(4)]
        for store in stores:
            buffer = bytearray(MiB)
            await store.read_into(3 * MiB, memoryview(buffer))
            assert buffer == path.read_bytes()[3 * MiB : 4 * MiB]
            await store.close()

    asyncio.run(run())


@pytest.mark.skipif(Library().writes_version_4, reason="this libnfs can")
def test_nfs_4_targets_are_refused_where_libnfs_cannot_write_them(nfs: NfsServer, tmp_path: Path) -> None:
    source, there = sparse(tmp_path / "source.img"), sparse(nfs.path("there.img"))
    before = there.read_bytes()
    for flags, name in (((), "new.img"), (("-n",), "there.img")):
        done = mpconv("convert", *flags, "-f", "raw", "-O", "raw", source, f"{nfs.url(name)}&version=4")
        assert done.returncode == 1 and "leave 'version=4' out" in done.stderr and done.stderr.count("\n") == 1
    assert not nfs.path("new.img").exists() and there.read_bytes() == before


@pytest.mark.skipif(not Library().writes_version_4, reason="this libnfs cannot")
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_nfs_4_targets_where_libnfs_can_write_them(nfs: NfsServer, tmp_path: Path, fmt: str) -> None:
    """Made, made again, and written into."""
    source = sparse(tmp_path / "source.img")
    url = f"{nfs.url(f'four.{fmt}')}&version=4"
    for flags in ((), ("-W",), ("-n",)):
        done = mpconv("convert", *flags, "-f", "raw", "-O", fmt, source, url)
        assert (done.returncode, done.stderr) == (0, "")
        assert mpconv("compare", "-f", "raw", "-F", fmt, source, url).returncode == 0
