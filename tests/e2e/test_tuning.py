"""`-v` tells how much is done at a time and why; who is far away gets more in flight, and what the user says counts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Lun, identical, make_image, mpconv
from tests.support.relay import relay
from tests.support.servers import NfsServer

MiB = 1 << 20
DELAY = 0.02
LINE = re.compile(r"^mpconv: (\d+) workers?, (\d+) buffers of (\S+ \S+) in flight: (.*)$", re.MULTILINE)


def chosen(*arguments: object) -> tuple[int, int, str, str]:
    done = mpconv("convert", "-v", "-f", "raw", "-O", "raw", *arguments)
    assert done.returncode == 0, done.stderr
    [(workers, requests, size, why)] = LINE.findall(done.stderr)
    return int(workers), int(requests), size, why


def test_files_of_this_host(tmp_path: Path) -> None:
    make_image(tmp_path / "a.raw", 4 * MiB)
    cores = len(os.sched_getaffinity(0))
    why = f"{cores} core{'' if cores == 1 else 's'}"
    assert chosen(tmp_path / "a.raw", tmp_path / "b.raw") == (1, 8, "2 MiB", why)


def test_a_distant_source_and_target(tmp_path: Path, nfs: NfsServer, lun: Callable[..., Lun]) -> None:
    make_image(nfs.path("far.raw"), 4 * MiB)
    made = lun(4 * MiB)
    portal = made.url.split("/")[2]
    host, port = portal.split(":")
    with relay(host, nfs.port) as source, relay(host, int(port)) as target:
        for one in (source, target):
            one.slow(delay=DELAY)
        names = (
            nfs.url("far.raw").replace(f"nfsport={nfs.port}", f"nfsport={source.port}"),
            made.url.replace(portal, f"127.0.0.1:{target.port}"),
        )
        workers, requests, _, why = chosen("-n", *names)
        assert workers == 1 and 8 + 3.125e9 * 2 * DELAY / (2 * MiB) - 1 <= requests <= 72
        times = re.search(r"([\d.]+) ms to the source, ([\d.]+) ms to the target$", why)
        assert times is not None and all(float(time) >= 1000 * DELAY for time in times.groups())
        assert chosen("-n", "-m", "3", "--workers", "2", *names)[:2] == (2, 3)
    assert identical(nfs.path("far.raw"), made.backing)
