"""A name with several addresses, of which the first one serves nothing; and portals that send elsewhere."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpconv.model.units import MiB
from tests.conftest import identical, make_image, mpconv
from tests.support import namespaces
from tests.support.faulty_target import FaultyTarget
from tests.support.servers import NfsServer, free_port

NAME = "dual.invalid"

pytestmark = pytest.mark.skipif(not namespaces.possible(), reason="no namespaces of one's own to name hosts in")


@pytest.fixture
def dual(tmp_path: Path) -> Iterator[str]:
    """A name whose first address is one where nobody listens."""
    hosts = tmp_path / "hosts"
    own = f"127.0.0.1 {NAME}\n::1 {NAME}\n"
    hosts.write_text(Path("/etc/hosts").read_text() + own)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    try:
        found = socket.getaddrinfo(NAME, 1, type=socket.SOCK_STREAM)
        assert [entry[4][0] for entry in found] == ["::1", "127.0.0.1"]
        yield NAME
    finally:
        subprocess.run(["umount", "/etc/hosts"], check=True)


def test_iscsi(dual: str, tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    make_image(source, 4 * MiB)
    with FaultyTarget(path=source) as target:
        url = target.url(host=dual)
        for command in (["info"], ["doctor", "--seconds", "1"], ["convert", "-f", "raw", "-O", "raw"]):
            out = [tmp_path / "out.raw"] if command[0] == "convert" else []
            done = mpconv(*command, url, *out)
            assert done.returncode == 0, done.stdout + done.stderr
    assert identical(source, tmp_path / "out.raw")


def test_nfs(dual: str, nfs: NfsServer, tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    make_image(source, 4 * MiB)
    url = nfs.url(f"{tmp_path.name}.raw").replace("127.0.0.1", dual)
    done = mpconv("convert", "-f", "raw", "-O", "raw", source, url)
    assert done.returncode == 0, done.stderr
    for command in (["info"], ["doctor", "--seconds", "1"], ["compare", "-f", "raw", "-F", "raw", source]):
        done = mpconv(*command, url)
        assert done.returncode == 0, done.stdout + done.stderr
    assert identical(source, nfs.path(f"{tmp_path.name}.raw"))


def test_nobody_listens_at_any(dual: str) -> None:
    port = free_port()
    for url in (f"iscsi://{dual}:{port}/iqn.x/1", f"nfs://{dual}/x/y?nfsport={port}&mountport={port}"):
        done = mpconv("info", url)
        assert done.returncode == 1
        assert f"Connection refused ({dual} port {port})" in done.stderr and done.stderr.count("\n") == 1


def test_a_worker_finds_its_coordinator(dual: str, tmp_path: Path) -> None:
    source, backing, keys, port = tmp_path / "source.raw", tmp_path / "target.raw", tmp_path / "keys", free_port()
    make_image(source, 4 * MiB)
    backing.write_bytes(bytes(4 * MiB))
    assert mpconv("keygen", keys).returncode == 0
    words = ["worker", "--connect", f"tcp://{dual}:{port}", "--key-file", keys, "--workers", "1"]
    worker = subprocess.Popen([sys.executable, "-m", "mpconv", *map(str, words)], stderr=subprocess.PIPE, text=True)
    listen = ["--listen", f"tcp://127.0.0.1:{port}", "--key-file", keys, "--workers", "0"]
    try:
        with FaultyTarget(path=source, serial=b"1") as read, FaultyTarget(path=backing, serial=b"2") as written:
            done = mpconv("convert", "-n", "-f", "raw", "-O", "raw", *listen, read.url(), written.url())
        assert done.returncode == 0, done.stderr
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.communicate()
    assert identical(source, backing)
