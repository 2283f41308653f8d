"""Servers that go away and come back while they are read from: the bytes are right, or the command says why not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import mpconv
from tests.conftest import identical
from tests.support.nfs_proxy import Answer, Cut, nfs_proxy
from tests.support.relay import Relay, relay
from tests.support.servers import IscsiServer, NfsServer

MiB = 1 << 20
IQN = "iqn.2026-11.org.mpconv:lost"


class Copy:
    """A copy under way."""

    def __init__(self, source: str, target: object, *options: object, env: dict[str, str] | None = None) -> None:
        words = [sys.executable, "-m", "mpconv", "convert", *map(str, options), source, str(target)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(env or {})})

    def end(self) -> tuple[int, list[str]]:
        """Exit code and the lines of stderr."""
        try:
            _, words = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, words.splitlines()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    with NfsServer(tmp_path_factory.mktemp("lost-nfs")) as made:
        yield made
        made.kill()


@pytest.fixture(scope="module")
def target_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IscsiServer]:
    with IscsiServer(tmp_path_factory.mktemp("lost-iscsi")) as made:
        made.add_target(IQN)
        yield made
        made.kill()


@pytest.fixture
def relayed() -> Iterator[Callable[[str], tuple[str, list[Relay]]]]:
    """A URL whose ports lead through relays, and these: of nfsd or the target first."""
    with ExitStack() as stack:

        def through(url: str) -> tuple[str, list[Relay]]:
            made = []
            for port in re.findall(r"(?:port=|127\.0\.0\.1:)(\d+)", url):
                made.append(stack.enter_context(relay("127.0.0.1", int(port))))
                url = url.replace(port, str(made[-1].port))
            return url, made

        yield through


def fill(path: Path, size: int) -> None:
    path.write_bytes(os.urandom(MiB) * (size // MiB))


def lun(server: IscsiServer, backing: Path, size: int) -> str:
    backing.write_bytes(os.urandom(size))
    return server.url(IQN, server.add_lun(IQN, backing))


def only_warnings(lines: list[str]) -> bool:
    return all(line.startswith("mpconv: warning: '") for line in lines)


@pytest.mark.parametrize(("scheme", "times", "size"), [("nfs", 100, 240 * MiB), ("iscsi", 20, 64 * MiB)])
def test_replies_that_are_cut_in_the_middle_spoil_nothing(
    server, target_server, relayed, tmp_path, scheme, times, size
):
    original, copied = (server.path("cut.raw") if scheme == "nfs" else tmp_path / "lun.raw"), tmp_path / "b.raw"
    if scheme == "nfs":
        original.write_bytes(os.urandom(size))
        url = server.url("cut.raw")
    else:
        url = lun(target_server, original, size)
    url, [data, *_] = relayed(url)
    data.cut_replies(9 * MiB // 4, times, grows=4099)
    code, lines = Copy(url, copied, "-W").end()
    assert code == 0, lines
    assert data.counts["cut"] >= times
    assert only_warnings(lines) and lines
    assert identical(original, copied)


def test_a_killed_nfs_server_that_is_started_again_is_read_on(server, relayed, tmp_path):
    fill(server.path("killed.raw"), 48 * MiB)
    url, [data, _] = relayed(server.url("killed.raw"))
    copy = Copy(url, tmp_path / "b.raw", "-r", "48M")
    data.wait_for("bytes", 12 * MiB)
    server.kill()
    data.wait_for("refused", 1)
    server.start()
    code, lines = copy.end()
    assert code == 0, lines
    assert only_warnings(lines) and any("trying again for" in line for line in lines)
    assert identical(server.path("killed.raw"), tmp_path / "b.raw")


def test_a_killed_target_that_is_started_again_is_read_on(target_server, relayed, tmp_path):
    original = tmp_path / "lun.raw"
    url, [data] = relayed(lun(target_server, original, 48 * MiB))
    copy = Copy(url, tmp_path / "b.raw", "-r", "48M")
    data.wait_for("bytes", 12 * MiB)
    target_server.restart(lambda: data.wait_for("refused", 1))
    code, lines = copy.end()
    assert code == 0, lines
    assert only_warnings(lines)
    assert identical(original, tmp_path / "b.raw")


@pytest.mark.parametrize("scheme", ["nfs", "iscsi"])
def test_a_server_that_falls_silent_is_connected_to_anew(server, target_server, relayed, tmp_path, scheme):
    original = server.path("silent.raw") if scheme == "nfs" else tmp_path / "lun.raw"
    fill(server.path("silent.raw"), 32 * MiB)
    url = server.url("silent.raw") if scheme == "nfs" else lun(target_server, original, 32 * MiB)
    url, [data, *_] = relayed(url)
    copy = Copy(url, tmp_path / "b.raw", "-r", "32M", "--workers", 1, env={"MPCONV_REQUEST_SECONDS": "1"})
    data.wait_for("bytes", 8 * MiB)
    data.stall()
    data.wait_for("accepted", data.counts["accepted"] + 1)
    data.go_on()
    code, lines = copy.end()
    assert code == 0, lines
    assert any("has not answered for 1 seconds" in line or "in time" in line for line in lines), lines
    assert identical(original, tmp_path / "b.raw")


@pytest.mark.parametrize(
    ("scheme", "retry_for", "words"),
    [("nfs", "0", "was lost"), ("iscsi", "0", "was lost"), ("nfs", "2s", "(given up after 2 seconds)")],
)
def test_a_server_that_never_returns_ends_the_copy(server, target_server, relayed, tmp_path, scheme, retry_for, words):
    fill(server.path("gone.raw"), 32 * MiB)
    url = server.url("gone.raw") if scheme == "nfs" else lun(target_server, tmp_path / "lun.raw", 32 * MiB)
    url, relays = relayed(url)
    copy = Copy(url, tmp_path / "b.raw", "-r", "16M", "--retry-for", retry_for)
    relays[0].wait_for("bytes", 4 * MiB)
    for each in relays:
        each.refuse()
    code, lines = copy.end()
    assert code == 1
    [line] = [line for line in lines if "warning" not in line]
    assert re.match(r"mpconv: error while reading at byte \d+ of '" + re.escape(url), line), line
    assert words in line and "target is incomplete" in line
    assert retry_for != "0" or lines == [line]


def test_salvage_is_for_bad_places_and_not_for_servers_that_are_gone(server, relayed, tmp_path):
    fill(server.path("salvaged.raw"), 16 * MiB)
    url, relays = relayed(server.url("salvaged.raw"))
    copy = Copy(url, tmp_path / "b.raw", "-r", "16M", "--salvage", "--retry-for", "0")
    relays[0].wait_for("bytes", 2 * MiB)
    for each in relays:
        each.refuse()
    code, [line] = copy.end()
    assert code == 1
    assert "the connection to the server was lost" in line


def test_a_slow_server_is_waited_for(server, relayed, tmp_path):
    fill(server.path("slow.raw"), 8 * MiB)
    url, [data, _] = relayed(server.url("slow.raw"))
    data.slow(delay=0.001, rate=16 * MiB)
    copy = Copy(url, tmp_path / "b.raw", "--workers", 1, env={"MPCONV_REQUEST_SECONDS": "5"})
    assert copy.end() == (0, [])
    assert not data.counts["cut"]
    assert identical(server.path("slow.raw"), tmp_path / "b.raw")


def shrink(path: Path) -> None:
    os.truncate(path, 16 * MiB)


def replace(path: Path) -> None:
    fill(path.with_suffix(".new"), 32 * MiB)
    os.rename(path.with_suffix(".new"), path)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"changed")
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shrink, f"has changed its size from {32 * MiB} to {16 * MiB} bytes"),
        (replace, "another one has come in its place (its inode is "),
        (rewrite, "has been changed since the copy began"),
    ],
)
def test_a_file_that_is_another_one_afterwards_is_refused(server, relayed, tmp_path, change, words):
    path = server.path(f"{change.__name__}.raw")
    fill(path, 32 * MiB)
    url, [data, _] = relayed(server.url(path.name))
    copy = Copy(url, tmp_path / "b.raw", "-r", "16M", "--workers", 1)
    data.wait_for("bytes", 4 * MiB)
    data.refuse()
    server.kill()
    change(path)
    server.start()
    data.accept()
    code, lines = copy.end()
    assert code == 1
    [line] = [line for line in lines if "warning" not in line]
    assert line.startswith("mpconv: error while reading") and words in line


def test_a_shared_source_may_be_changed(server, relayed, tmp_path):
    path = server.path("shared.raw")
    fill(path, 16 * MiB)
    url, [data, _] = relayed(server.url(path.name))
    copy = Copy(url, tmp_path / "b.raw", "-r", "16M", "-U", "--workers", 1)
    data.wait_for("bytes", 4 * MiB)
    data.refuse()
    rewrite(path)
    data.accept()
    code, lines = copy.end()
    assert code == 0, lines
    assert only_warnings(lines)


def test_both_images_of_a_comparison_outlast_their_servers(server, target_server, relayed, tmp_path):
    original = tmp_path / "lun.raw"
    first, [target, *_] = relayed(lun(target_server, original, 64 * MiB))
    server.path("compared.raw").write_bytes(original.read_bytes())
    second, [files, _] = relayed(server.url("compared.raw"))
    target.cut_replies(5 * MiB, 4)
    files.cut_replies(7 * MiB, 4)
    words = [sys.executable, "-m", "mpconv", "compare", first, second]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "Images are identical.\n"), done.stderr
    assert target.counts["cut"] >= 4 and files.counts["cut"] >= 4
    assert only_warnings(done.stderr.splitlines())


@pytest.mark.parametrize("scheme", ["nfs", "iscsi"])
def test_a_target_whose_server_is_away_when_it_is_read_back_is_waited_for(
    server, target_server, relayed, tmp_path, scheme
):
    """Everything is written, the server was there a moment ago."""
    fill(tmp_path / "a.raw", 8 * MiB)
    if scheme == "nfs":
        server.path("back.raw").write_bytes(bytes(8 * MiB))
        url = server.url("back.raw")
    else:
        url = lun(target_server, tmp_path / "back.raw", 8 * MiB)
    url, ways = relayed(url)
    warned: list[str] = []

    def progress(now: mpconv.Progress) -> None:
        if now.phase == "verify" and not now.done and not warned:
            for way in ways:
                way.refuse()

    def warning(text: str) -> None:
        if not warned:
            for way in ways:
                way.accept()
        warned.append(text)

    options = mpconv.Options(create=False, verify=1.0, retry_for=30)
    copied = mpconv.blocking.convert(str(tmp_path / "a.raw"), url, options, on_progress=progress, on_warning=warning)
    assert copied.verified == 8 * MiB
    assert any("refused" in text or "does not answer" in text for text in warned), warned


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("made", [True, False])
def test_a_server_that_goes_while_a_file_is_made(nfs: NfsServer, made: bool, at: int, tmp_path: Path) -> None:
    """What this run made is gone again; what was there before stays, whatever is in it by now."""
    source, path = tmp_path / "source.raw", nfs.path(f"{tmp_path.name}.raw")
    source.write_bytes(os.urandom(MiB))
    if not made:
        path.write_bytes(b"old")

    def reply(name: str, body: bytes, number: int, call: bytes) -> Answer:
        return Cut.ALL if name == "SETATTR" and number == at else None

    with nfs_proxy(nfs.port, reply=reply) as proxy:
        code, lines = Copy(str(source), proxy.url(nfs.url(path.name)), "-f", "raw", "-O", "raw").end()
        assert proxy.calls["SETATTR"] >= at
    assert (code, len(lines)) == (1, 1)
    assert "the connection to the server was lost" in lines[0]
    assert path.exists() is not made
