"""Connections of strangers, without a key or token, to all that a job serves; and jobs that run short by themselves."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import make_image, mpconv
from tests.support.servers import free_port

MiB = 1 << 20
MANY = 1200
LIMIT = 1024
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47)
"""What a worker's first words begin with."""
SHORT = ("too many open files", "not enough memory", "no thread can be started", "no worker process can be started")


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """For the connections, which are held here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    assert mpconv("keygen", tmp_path / "keys").returncode == 0
    return tmp_path / "keys"


def limited(kind: int, soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (soft, hard))


def hold(stack: ExitStack, port: int, said: bytes) -> None:
    """Connections that say this and no more; those that find no place are let go."""
    for _ in range(MANY):
        stranger = stack.enter_context(socket.socket())
        stranger.setblocking(False)
        stranger.connect_ex(("127.0.0.1", port))
        if said:
            try:
                stranger.send(said)
            except OSError:
                continue


def listens(port: int) -> None:
    deadline = time.monotonic() + 20
    wanted = f":{port:04X} "
    while not any(wanted in line and " 0A " in line for line in Path("/proc/net/tcp").read_text().splitlines()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("said", [b"", b"G", GREETING])
@pytest.mark.parametrize("hard", [False, True])
def test_strangers_do_not_hurt_a_copy(tmp_path: Path, keys: Path, said: bytes, hard: bool):
    """Workers and watchers get in where the strangers are silent."""
    source, target = tmp_path / "a.raw", tmp_path / "b.raw"
    make_image(source, 24 * MiB)
    gate, web, metrics = free_port(), free_port(), free_port()
    options = ["--shared-files", "--listen", f"tcp://127.0.0.1:{gate}", "--key-file", keys, "-r", "6M", "-W"]
    words = ["convert", *options, "--web", web, "--metrics", metrics, "--workers", "1", source, target]
    command = [sys.executable, "-m", "mpconv", *map(str, words)]
    most = LIMIT if hard else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = limited(resource.RLIMIT_NOFILE, LIMIT, most)
    with ExitStack() as stack, subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=limit) as copy:
        stack.callback(copy.kill)
        for port in (metrics, web, gate):
            listens(port)
            hold(stack, port, said)
        if not said:
            join = ["worker", "--workers", "1", "--connect", f"tcp://127.0.0.1:{gate}", "--key-file", str(keys)]
            join.append("--shared-files")
            worker = subprocess.Popen([sys.executable, "-m", "mpconv", *join])
            stack.callback(worker.kill)
            assert b"<html" in get(f"http://127.0.0.1:{web}/")
            deadline = time.monotonic() + 20
            while get(f"http://127.0.0.1:{metrics}/metrics").count(b"mpconv_worker_up{") < 2:
                assert time.monotonic() < deadline
            assert worker.wait(60) == 0
        _, err = copy.communicate(timeout=60)
    assert copy.returncode == 0, err
    assert err.count(b"\n") < 10 and b"Too many" not in err
    assert source.read_bytes() == target.read_bytes()


def test_nor_a_fan_out(tmp_path: Path, keys: Path):
    plan = "[limits]\njobs = 2\nworkers = 2\n"
    for number in range(6):
        make_image(tmp_path / f"{number}.raw", 4 * MiB, seed=number)
        plan += f'[[job]]\nname = "{number}"\nsource = "{tmp_path}/{number}.raw"\ntarget = "{tmp_path}/{number}.out"\n'
        plan += 'rate_limit = "8M"\n'
    (tmp_path / "plan").write_text(plan)
    gate = free_port()
    options = ["--json", "--shared-files", "--listen", f"tcp://127.0.0.1:{gate}", "--key-file", str(keys)]
    command = [sys.executable, "-m", "mpconv", "fanout", *options, str(tmp_path / "plan")]
    pipe = subprocess.PIPE
    limit = limited(resource.RLIMIT_NOFILE, LIMIT, LIMIT)
    with ExitStack() as stack, subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=limit) as fanout:
        stack.callback(fanout.kill)
        listens(gate)
        hold(stack, gate, b"")
        out, err = fanout.communicate(timeout=60)
    assert fanout.returncode == 0, err
    assert json.loads(out)
    for number in range(6):
        assert (tmp_path / f"{number}.raw").read_bytes() == (tmp_path / f"{number}.out").read_bytes()


def test_metrics_answer_to_this_host_s_names_alone(tmp_path: Path):
    """As the page: another site's name may have been made to point here."""
    port = free_port()
    words = ["convert", "--metrics", str(port), "-r", "4M", "null:?size=1G", "null:"]
    with subprocess.Popen([sys.executable, "-m", "mpconv", *words], stderr=subprocess.DEVNULL) as copy:
        listens(port)
        url = f"http://127.0.0.1:{port}/metrics"
        for host, code in (("127.0.0.1", 200), ("localhost:80", 200), ("[::1]", 200), ("evil.example", 403)):
            try:
                with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=20) as answer:
                    found = answer.status
            except urllib.error.HTTPError as error:
                found = error.code
            assert found == code
        copy.terminate()


@pytest.mark.parametrize("count", [8, 10, 14, 17, 20, 24, 30, 40, 64])
def test_few_descriptors(tmp_path: Path, count: int):
    make_image(tmp_path / "a.raw", 2 * MiB)
    words = [sys.executable, "-m", "mpconv", "convert", tmp_path / "a.raw", tmp_path / "b.raw"]
    _right_or_told(words, tmp_path, limited(resource.RLIMIT_NOFILE, count, count))


@pytest.mark.parametrize("size", [160, 200, 250, 300, 400, 600])
def test_little_memory(tmp_path: Path, size: int):
    make_image(tmp_path / "a.raw", 2 * MiB)
    words = [sys.executable, "-m", "mpconv", "convert", tmp_path / "a.raw", tmp_path / "b.raw"]
    _right_or_told(words, tmp_path, limited(resource.RLIMIT_AS, size * MiB, size * MiB))


@pytest.mark.parametrize(("targets", "count"), [(60, 64), (100, 64), (60, 90), (100, 128), (100, 256)])
def test_many_targets_and_few_descriptors(tmp_path: Path, targets: int, count: int):
    make_image(tmp_path / "a.raw", 2 * MiB)
    names = [tmp_path / f"{number}.out" for number in range(targets)]
    words = [sys.executable, "-m", "mpconv", "deploy", tmp_path / "a.raw", *names]
    code = _told(words, limited(resource.RLIMIT_NOFILE, count, count))
    assert [name.exists() for name in names] == [code == 0] * targets
    for name in names:
        assert code or name.read_bytes() == (tmp_path / "a.raw").read_bytes()


def test_many_sources_and_few_descriptors(tmp_path: Path):
    make_image(tmp_path / "a.raw", 2 * MiB)
    words = [sys.executable, "-m", "mpconv", "convert", *[tmp_path / "a.raw"] * 60, tmp_path / "b.raw"]
    assert _told(words, limited(resource.RLIMIT_NOFILE, 64, 64)) == 1
    assert not (tmp_path / "b.raw").exists()


def _right_or_told(words: list[object], directory: Path, limit: Callable[[], None]) -> None:
    if _told(words, limit) == 0:
        assert (directory / "a.raw").read_bytes() == (directory / "b.raw").read_bytes()


def _told(words: list[object], limit: Callable[[], None]) -> int:
    """The exit code: 0 without a word, or 1 with one line."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        assert done.stderr == ""
    else:
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert any(words in done.stderr for words in SHORT), done.stderr
    return done.returncode
