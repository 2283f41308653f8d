"""What is particular to iSCSI: login, LUNs, lost sessions; against a real tgt."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpconv.model.errors import Fatal, Retryable
from mpconv.model.units import KiB, MiB
from mpconv.transports.base import Access
from mpconv.transports.iscsi import login as iscsi_login
from mpconv.transports.iscsi import store as iscsi_transport
from mpconv.transports.iscsi.login import parse
from tests.conftest import IQN, Lun
from tests.support.servers import IscsiServer, free_port

USER, SECRET = "user", "right-secret-1"


def refusal(url: str, access: Access = Access.WRITE) -> str:
    """The message; one line, soon, and without a password."""
    started = time.monotonic()
    with pytest.raises(Fatal) as caught:
        asyncio.run(iscsi_transport.connect(url, access))
    text = str(caught.value)
    assert time.monotonic() - started < 10
    assert text.startswith("Could not open 'iscsi://")
    assert "\n" not in text and "secret" not in text
    return text


def opens(url: str, access: Access = Access.READ) -> int:
    async def run() -> int:
        store = await iscsi_transport.connect(url, access)
        await store.close()
        return store.size

    return asyncio.run(run())


@pytest.fixture(scope="module")
def chap(iscsi: IscsiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    backing = tmp_path_factory.mktemp("chap") / "lun.img"
    backing.write_bytes(bytes(MiB))
    iqn = iscsi.add_target("iqn.2026-11.org.mpconv:transport-chap", (USER, SECRET))
    yield iscsi.url(iqn, iscsi.add_lun(iqn, backing))


def test_hosts_and_ports_that_are_not_there() -> None:
    assert "cannot be resolved" in refusal("iscsi://no-such-host.invalid/iqn.x/1")
    port = free_port()
    assert f"Connection refused (127.0.0.1 port {port})" in refusal(f"iscsi://127.0.0.1:{port}/iqn.x/1")


def test_a_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iscsi_login, "_LOGIN_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        assert f"no answer from 127.0.0.1 port {port}" in refusal(f"iscsi://127.0.0.1:{port}/iqn.x/1")


def test_targets_and_luns_that_are_not_there(lun: Callable[..., Lun], iscsi: IscsiServer) -> None:
    url = lun(MiB).url
    assert "No such target 'iqn.none'" in refusal(url.replace(IQN, "iqn.none"))
    assert "No such LUN" in refusal(iscsi.url(IQN, 255))
    assert "there is no LUN 99999" in refusal(iscsi.url(IQN, 99999))
    assert "is not a disk but the target's controller" in refusal(iscsi.url(IQN, 0))


@pytest.mark.parametrize("block_size", [256, 2 * MiB])
def test_blocks_of_unusual_size(lun: Callable[..., Lun], block_size: int) -> None:
    assert f"blocks of {block_size} bytes" in refusal(lun(4 * MiB, block_size=block_size).url)


def test_a_high_lun_is_not_taken_for_a_low_one(iscsi: IscsiServer, tmp_path: Path) -> None:
    """300 sent as it stands is LUN 44 of bus 1, which tgt takes for LUN 44."""
    iqn = iscsi.add_target("iqn.2026-11.org.mpconv:high")
    for number in (44, 300):
        backing = tmp_path / f"{number}.img"
        backing.write_bytes(bytes(number * KiB))
        tid = str(iscsi._targets.index(iqn) + 1)
        where = ["--mode", "logicalunit", "--tid", tid, "--lun", str(number)]
        iscsi._admin("--op", "new", *where, "-b", str(backing))
    assert opens(iscsi.url(iqn, 44)) == 44 * KiB
    assert opens(iscsi.url(iqn, 300)) == 300 * KiB


def test_chap(chap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIBISCSI_CHAP_USERNAME", "LIBISCSI_CHAP_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert opens(chap.replace("//", f"//{USER}%{SECRET}@")) == MiB
    assert "asks for CHAP" in refusal(chap)
    assert "does not take user 'user'" in refusal(chap.replace("//", f"//{USER}%wrong-secret@"))
    assert "no password for 'user'" in refusal(chap.replace("//", f"//{USER}@"))
    assert "with an '@'" in refusal(chap.replace("//", f"//{USER}%first@secret@"))
    monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", SECRET)
    assert opens(chap.replace("//", f"//{USER}@")) == MiB
    monkeypatch.setenv("LIBISCSI_CHAP_USERNAME", USER)
    assert opens(chap) == MiB


@pytest.mark.parametrize(
    ("url", "login", "portal", "target", "number"),
    [
        ("iscsi://h/iqn.x/1", ("", ""), ("h", 3260), "iqn.x", 1),
        ("ISCSI://u%p%41/s@h:1/iqn.x%3ay/16383?x=y@z", ("u", "p%41/s"), ("h", 1), "iqn.x:y", 16383),
        ("iscsi://[::1]:3261/iqn.x/0", ("", ""), ("::1", 3261), "iqn.x", 0),
    ],
)
def test_urls(url: str, login: tuple[str, str], portal: tuple[str, int], target: str, number: int) -> None:
    found = parse(url)
    assert (found.user, found.password) == login
    assert ((found.host, found.port), found.target, found.lun) == (portal, target, number)
    assert "p%41" not in found.name and "p%41" not in repr(found)


@pytest.mark.parametrize("url", ["h", "h/iqn.x", "h/iqn.x/a", "h:99999/iqn.x/1", "/iqn.x/1", "h:1:2/iqn.x/1", "[h/i/1"])
def test_urls_that_are_none(url: str) -> None:
    refusal(f"iscsi://u%secret@{url}")


def test_one_lun_by_two_names(lun: Callable[..., Lun]) -> None:
    url = lun(MiB).url

    async def run() -> None:
        first = await iscsi_transport.connect(url, Access.READ)
        second = await iscsi_transport.connect(url.replace("127.0.0.1", "localhost") + "?x=y", Access.READ)
        assert first.identity == second.identity
        await first.close()
        await second.close()

    asyncio.run(run())


def test_a_read_only_lun(lun: Callable[..., Lun]) -> None:
    url = lun(MiB, readonly=True).url
    assert "write protected" in refusal(url)

    async def run() -> None:
        store = await iscsi_transport.connect(url, Access.READ)
        with pytest.raises(Fatal, match=r"error while writing at byte 512 .*write protected"):
            await store.write(512, memoryview(bytearray(512)))
        await store.close()

    asyncio.run(run())


def test_a_target_that_dies_under_requests(tmp_path: Path) -> None:
    with IscsiServer(tmp_path) as server:
        backing = tmp_path / "lun.img"
        backing.write_bytes(bytes(8 * MiB))
        url = server.url(IQN, server.add_lun(server.add_target(IQN), backing))

        async def run() -> None:
            store = await iscsi_transport.connect(url, Access.WRITE)
            buffers = [memoryview(bytearray(2 * MiB)) for _ in range(4)]
            writes = [asyncio.create_task(store.write(n * 2 * MiB, buffer)) for n, buffer in enumerate(buffers)]
            await asyncio.sleep(0)
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            errors = await asyncio.gather(*writes, return_exceptions=True)
            for n, error in enumerate(errors):
                assert isinstance(error, Retryable)
                assert error.operation == "writing"
                assert error.offset is not None and n * 2 * MiB <= error.offset < (n + 1) * 2 * MiB
            with pytest.raises(Retryable, match="lost"):
                await store.flush()
            await store.close()
            await store.close()

        asyncio.run(run())
