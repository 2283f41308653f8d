"""Sources whose servers say that there are zeros where there is data: read without their maps, or found out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpconv import Options, convert
from tests.conftest import identical, mpconv
from tests.support.faulty_target import FaultyTarget
from tests.support.faulty_target.hooks import hidden_data
from tests.support.nfs_proxy import NfsProxy, SeekLie, nfs_proxy
from tests.support.servers import NfsServer

KiB, MiB = 1 << 10, 1 << 20
SIZE = 255 * MiB
RAW = ["-f", "raw", "-O", "raw"]
HIDDEN = [
    (100 * MiB, 101 * MiB),
    (177 * MiB + 4 * KiB, 177 * MiB + 8 * KiB),
    (0, 4 * KiB),
    (SIZE - 512, SIZE),
    (64 * KiB - 1, 64 * KiB),
]


def sparse(path: Path, *data: int) -> Path:
    """4 KiB of data at each of these bytes."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in data:
            os.pwrite(file.fileno(), os.urandom(4 * KiB), at)
    return path


def truth(path: Path, stored: Path, start: int, end: int) -> Path:
    """What the server's READ gives."""
    subprocess.run(["cp", "--sparse=always", stored, path], check=True)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"D" * (end - start), start)
    return path


@contextmanager
def lying(nfs: NfsServer, name: str, start: int, end: int) -> Iterator[tuple[str, NfsProxy]]:
    with nfs_proxy(nfs.port, reply=SeekLie(start, end)) as proxy:
        yield proxy.url(nfs.url(name)), proxy


def right(*words: object) -> subprocess.CompletedProcess[str]:
    done = mpconv(*words)
    assert done.returncode == 0, done.stderr
    return done


def found_out(done: subprocess.CompletedProcess[str], at: int) -> None:
    assert done.returncode == 1, done.stderr
    assert f"hid data at byte {at}: use --no-hole-map" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def right_or_found_out(done: subprocess.CompletedProcess[str], at: int, wanted: Path, out: Path) -> None:
    """What the map's own samples find is read: where they look is chance."""
    if done.returncode == 0:
        assert identical(wanted, out)
    else:
        found_out(done, at)
        assert not out.exists()


@pytest.mark.parametrize(("start", "end"), HIDDEN)
def test_seek_that_hides_data(nfs: NfsServer, start: int, end: int, tmp_path: Path) -> None:
    stored = sparse(nfs.path(f"{tmp_path.name}.raw"), 32 * MiB, 200 * MiB)
    wanted, out = truth(tmp_path / "truth.raw", stored, start, end), tmp_path / "out.raw"
    with lying(nfs, stored.name, start, end) as (url, proxy):
        right("convert", "--no-hole-map", *RAW, url, out)
        assert not proxy.calls["COMPOUND"]
        assert identical(wanted, out)
        out.unlink()
        right_or_found_out(mpconv("convert", "--verify=source", *RAW, url, out), start, wanted, out)
        assert proxy.calls["COMPOUND"]
        right("convert", "--verify=source", "--no-hole-map", *RAW, url, out)
    assert identical(wanted, out)


def test_looks_without_the_map(nfs: NfsServer, tmp_path: Path) -> None:
    stored = sparse(nfs.path(f"{tmp_path.name}.raw"), 32 * MiB)
    wanted = truth(tmp_path / "truth.raw", stored, 100 * MiB, 101 * MiB)
    with lying(nfs, stored.name, 100 * MiB, 101 * MiB) as (url, proxy):
        sums = [right("checksum", *words).stdout.split()[0] for words in (["--no-hole-map", url], [wanted])]
        right("compare", "--no-hole-map", url, wanted)
        other = mpconv("compare", "--no-hole-map", url, stored)
        assert not proxy.calls["COMPOUND"]
    assert sums[0] == sums[1]
    assert (other.returncode, other.stdout) == (1, f"Content mismatch at offset {100 * MiB}!\n")


def test_several_targets(nfs: NfsServer, tmp_path: Path) -> None:
    stored = sparse(nfs.path(f"{tmp_path.name}.raw"), 32 * MiB)
    start, end = 77 * MiB, 77 * MiB + 4 * KiB
    wanted = truth(tmp_path / "truth.raw", stored, start, end)
    outs = [tmp_path / "one.raw", tmp_path / "two.raw"]
    with lying(nfs, stored.name, start, end) as (url, _):
        found_out(mpconv("deploy", "--verify=source", "-f", "raw", url, *outs), start)
        assert not any(out.exists() for out in outs)
        right("deploy", "--verify=source", "--no-hole-map", "-f", "raw", url, *outs)
    assert all(identical(wanted, out) for out in outs)


@pytest.mark.parametrize("option", ["no_hole_map = true", 'verify = "source"'])
def test_in_a_plan(nfs: NfsServer, option: str, tmp_path: Path) -> None:
    stored = sparse(nfs.path(f"{tmp_path.name}.raw"), 32 * MiB)
    start, end = 90 * MiB, 90 * MiB + 4 * KiB
    wanted, out, plan = truth(tmp_path / "truth.raw", stored, start, end), tmp_path / "out.raw", tmp_path / "plan.toml"
    with lying(nfs, stored.name, start, end) as (url, _):
        plan.write_text(
            f'[[job]]\nname = "one"\nsource = "{url}"\ntarget = "{out}"\nsource_format = "raw"\nretries = 0\n{option}\n'
        )
        done = mpconv("fanout", plan)
    if option.startswith("no"):
        assert done.returncode == 0, done.stderr
        assert identical(wanted, out)
    else:
        assert done.returncode, done.stdout
        assert f"hid data at byte {start}: use --no-hole-map" in done.stderr + done.stdout


def test_of_the_api(tmp_path: Path) -> None:
    """Where the source is read without a share of the target; a map that tells the truth changes no digest."""
    source = sparse(tmp_path / "a.raw", 5 * MiB, 77 * MiB)
    digests = []
    for number, options in enumerate(({}, {"hole_map": False}, {"verify_source": True})):
        out = tmp_path / f"{number}.raw"
        found = asyncio.run(convert(str(source), str(out), Options(digest=True, **options)))
        digests.append(found.digest)
        assert identical(source, out)
    assert len(set(digests)) == 1


@pytest.mark.parametrize("command", ["convert", "deploy"])
@pytest.mark.parametrize("option", ["--no-hole-map", "--verify=source"])
def test_resumed(nfs: NfsServer, command: str, option: str, tmp_path: Path) -> None:
    """The option is kept; and what an earlier run was told of zeros is not believed."""
    stored = sparse(nfs.path(f"{tmp_path.name}.raw"), *range(0, 64 * MiB, MiB // 2))
    start, end = 5 * MiB + 200 * KiB, 5 * MiB + 204 * KiB
    wanted, out = truth(tmp_path / "truth.raw", stored, start, end), tmp_path / "out.raw"
    output = [] if command == "deploy" else ["-O", "raw"]
    with lying(nfs, stored.name, start, end) as (url, proxy):
        words = [command, "--progress=json", "--journal", tmp_path / "j.db", option, "-f", "raw", *output, "-r", "2M"]
        line = [sys.executable, "-m", "mpconv", *map(str, [*words, url, out])]
        copy = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert copy.stdout is not None
        assert any(json.loads(report).get("done", 0) >= 6 * MiB for report in copy.stdout)
        copy.send_signal(signal.SIGINT)
        _, why = copy.communicate(timeout=20)
        assert copy.returncode == 130, why
        done = mpconv("resume", "-r", "10G", tmp_path / "j.db")
        asked = proxy.calls["COMPOUND"]
    if option == "--no-hole-map":
        assert done.returncode == 0, done.stderr
        assert not asked
        assert identical(wanted, out)
    else:
        assert asked
        assert done.returncode == 1
        assert f"hid data at byte {start}: use --no-hole-map" in done.stderr


@pytest.mark.parametrize(("start", "end"), [(12 * MiB + 512, 12 * MiB + 1024), (200 * MiB, 201 * MiB)])
def test_a_target_that_hides_data(start: int, end: int, tmp_path: Path) -> None:
    stored, out = sparse(tmp_path / "lun.img", 32 * MiB), tmp_path / "out.raw"
    wanted = truth(tmp_path / "truth.raw", stored, start, end)
    with FaultyTarget(path=stored, on_command=hidden_data(start, end)) as target:
        right_or_found_out(mpconv("convert", "--verify=source", *RAW, target.url(), out), start, wanted, out)
        asked = target.counts["GLBA"]
        assert asked
        right("convert", "--no-hole-map", *RAW, target.url(), out)
        assert target.counts["GLBA"] == asked
    assert identical(wanted, out)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("options", [["--no-hole-map"], ["--verify=source"], ["--no-hole-map", "--verify=source"]])
def test_images_of_this_host(fmt: str, options: list[str], tmp_path: Path) -> None:
    raw, source, out = sparse(tmp_path / "a.raw", 0, 3 * MiB, 99 * MiB + 512), tmp_path / f"a.{fmt}", tmp_path / "out"
    if fmt == "qcow2":
        subprocess.run(["qemu-img", "convert", *RAW[:2], "-O", "qcow2", raw, source], check=True)
    for target in ("raw", "qcow2"):
        digest = right("convert", "--digest", *options, "-f", fmt, "-O", target, source, out).stdout.split()
        subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", target, raw, out], check=True)
        assert right("checksum", "-f", fmt, source).stdout.split()[0] in digest
        out.unlink()
