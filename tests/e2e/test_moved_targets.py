"""Targets that move under a copy: a portal that sends elsewhere, a name that means another address."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mpconv import transports
from mpconv.model.errors import Gone
from mpconv.model.place import Place
from mpconv.model.units import MiB
from mpconv.transports.base import Access
from mpconv.transports.retry import Retry
from tests.conftest import IQN, identical, mpconv
from tests.support import namespaces
from tests.support.faulty_target import FaultyTarget, wait_for
from tests.support.faulty_target.hooks import redirecting
from tests.support.faulty_target.target import Answer, Refusal
from tests.support.servers import IscsiServer

SIZE = 16 * MiB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


def ends_at(count: int, name: str, then: Callable[[FaultyTarget], None]) -> Callable[..., Answer]:
    """At the `count`th command of that name the node is over: whatever is connected is cut off."""

    def hook(target: FaultyTarget, session: Any, command: str, cdb: bytes, n: int) -> Answer:
        if command == name and n == count:
            then(target)
        return "close" if target.counts[name] >= count else None

    return hook


def over_when(moved: Callable[[], bool]) -> Callable[..., Refusal | None]:
    """A node that lets nobody in once it has moved."""
    return lambda target, session, keys: (3, 1, {}) if moved() else None


@pytest.mark.parametrize("status", [(1, 1), (1, 2)])
@pytest.mark.parametrize("as_target", [False, True])
@pytest.mark.parametrize("other", [b"SER0001", b"ANOTHER"])
def test_a_portal_that_sends_to_another_node(
    status: tuple[int, int], as_target: bool, other: bytes, source: Path, tmp_path: Path
) -> None:
    """The same LUN by its designators goes on, another one behind the same name is refused."""
    out = tmp_path / "out.raw"
    out.write_bytes(bytes(SIZE))
    served = out if as_target else source
    where: list[str] = []
    with ExitStack() as opened:
        later = opened.enter_context(FaultyTarget(path=served, serial=other))
        moves = ends_at(6, "WRITE16" if as_target else "READ16", lambda target: where.append(f"{later.portal},1"))
        over = over_when(lambda: len(where) > 1)
        first = opened.enter_context(FaultyTarget(path=served, on_command=moves, on_login=over))
        where.append(f"{first.portal},1")
        portal = opened.enter_context(FaultyTarget(path=served, on_login=redirecting(lambda: where[-1], status=status)))
        images = ["-n", source, portal.url()] if as_target else [portal.url(), out]
        done = mpconv("convert", "-f", "raw", "-O", "raw", "--workers", "2", *images)
        assert first.logins and portal.logins == 0
    if other == b"SER0001":
        assert done.returncode == 0, done.stderr
        assert identical(source, out)
    else:
        assert done.returncode == 1, done.stderr


@pytest.mark.parametrize("command", ["info", "map", "convert"])
def test_portals_that_send_in_a_circle(command: str, source: Path, tmp_path: Path) -> None:
    portals: list[FaultyTarget] = []
    with ExitStack() as opened:
        for number in (1, 0):
            send = redirecting(lambda number=number: f"{portals[number].portal},1")
            portals.append(opened.enter_context(FaultyTarget(path=source, on_login=send)))
        rest = [tmp_path / "out.raw", "--retry-for", "0"] if command == "convert" else []
        done = mpconv(command, portals[0].url(), *rest)
    assert done.returncode == 1 and "send from one to the next" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "portal", ["", "nowhere.invalid:3260,1", "[::1", "127.0.0.1:99999,1", "127.0.0.1:1,1", "\x1b[2J"]
)
def test_a_portal_that_sends_to_nowhere(portal: str, source: Path) -> None:
    with FaultyTarget(path=source, on_login=redirecting(lambda: portal)) as target:
        done = mpconv("info", target.url())
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """What a name means from now on."""
    if not namespaces.possible():
        pytest.skip("no namespaces of one's own to name hosts in")
    hosts = tmp_path / "hosts"
    given = Path("/etc/hosts").read_text()

    def name(address: str) -> None:
        hosts.write_text(f"{given}\n{address} moving.invalid\n")

    name("127.0.0.1")
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    yield name
    subprocess.run(["umount", "/etc/hosts"], check=True)


@pytest.mark.parametrize("other", [b"SER0001", b"ANOTHER"])
def test_a_name_that_resolves_anew(other: bytes, names: Callable[[str], None], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    with ExitStack() as opened:
        moved: list[bool] = []

        def move(target: FaultyTarget) -> None:
            names("127.0.0.9")
            moved.append(True)

        moves, over = ends_at(6, "READ16", move), over_when(lambda: bool(moved))
        first = opened.enter_context(FaultyTarget(path=source, on_command=moves, on_login=over))
        opened.enter_context(FaultyTarget(path=source, host="127.0.0.9", port=first.port, serial=other))
        done = mpconv("convert", "-f", "raw", "-O", "raw", first.url(host="moving.invalid"), out)
    assert (done.returncode == 0) is (other == b"SER0001"), done.stderr
    if done.returncode == 0:
        assert identical(source, out)
    else:
        assert "another one has come in its place" in done.stderr and done.stderr.count("\n") <= 2


@pytest.mark.parametrize("same", [True, False])
def test_a_lun_without_a_name_of_its_own_is_known_by_its_contents(
    same: bool, names: Callable[[str], None], source: Path, tmp_path: Path
) -> None:
    """Two real servers whose LUNs call themselves the same, as those of tgt all do."""
    other = tmp_path / "other.raw"
    other.write_bytes(source.read_bytes() if same else os.urandom(SIZE))
    with IscsiServer(tmp_path / "one") as one, IscsiServer(tmp_path / "two", address="127.0.0.9") as two:
        two.stop()
        two.port = one.port
        two.start()
        for server, backing in ((one, source), (two, other)):
            server.add_lun(server.add_target(IQN), backing)
        place = Place(url=one.url(IQN, 1).replace("127.0.0.1", "moving.invalid"))

        async def run() -> None:
            store = await transports.open_place(place, Access.READ, retry=Retry(10))
            buffer = memoryview(bytearray(MiB))
            for at in range(0, SIZE // 2, MiB):
                await store.read_into(at, buffer)
            await asyncio.to_thread(one.kill)
            names("127.0.0.9")
            try:
                await store.read_into(SIZE // 2, buffer)
                assert buffer == source.read_bytes()[SIZE // 2 : SIZE // 2 + MiB]
            finally:
                await store.close()

        if same:
            asyncio.run(run())
        else:
            with pytest.raises(Gone, match="is not the image it was"):
                asyncio.run(run())


def test_a_real_target_that_is_restarted_with_twenty_luns(source: Path, tmp_path: Path) -> None:
    """Its LUNs come one by one, and each that comes is news to who reads the first."""
    out = tmp_path / "out.raw"
    with IscsiServer(tmp_path / "tgt") as server:
        iqn = server.add_target(IQN)
        for number in range(20):
            backing = source if not number else tmp_path / f"lun{number}.img"
            if number:
                backing.write_bytes(bytes(MiB))
            server.add_lun(iqn, backing)
        words = ["convert", "-f", "raw", "-O", "raw", "-W", "-r", "4M", server.url(iqn, 1), out]
        copy = subprocess.Popen([sys.executable, "-m", "mpconv", *map(str, words)], stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: server.connections(iqn) >= 2, "the workers' sessions")
            server.restart()
            for number in range(20, 40):
                backing = tmp_path / f"lun{number}.img"
                backing.write_bytes(bytes(MiB))
                server.add_lun(iqn, backing)
            _, said = copy.communicate(timeout=60)
        finally:
            copy.kill()
    assert copy.returncode == 0, said
    assert identical(source, out)
