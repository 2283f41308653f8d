"""Names in URLs: what stands in them reaches the server as the same bytes, or is refused in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpconv.model.errors import Fatal
from mpconv.transports.iscsi import login
from mpconv.transports.nfs.url import Address, parse
from tests.conftest import mpconv
from tests.support.servers import NfsServer

MiB = 1 << 20
DATA = os.urandom(MiB)


@pytest.mark.parametrize(
    ("url", "host", "path", "parameters"),
    [
        ("nfs://h/e/a.raw", "h", "/e/a.raw", {}),
        ("NFS://h:2050/e/a.raw", "h", "/e/a.raw", {"nfsport": "2050"}),
        ("nfs://me@h/e/a.raw", "h", "/e/a.raw", {}),
        ("nfs://[::1]/e/a", "::1", "/e/a", {}),
        ("nfs://[fe80::1%25eth0]/e/a", "fe80::1%eth0", "/e/a", {}),
        ("nfs://h/e/a%20b%3Fc%3f.raw?uid=1&gid=2", "h", "/e/a b?c?.raw", {"uid": "1", "gid": "2"}),
        ("nfs://h/e%2fd/a%2525", "h", "/e/d/a%25", {}),
        ("nfs://h/e/%C3%BC%ff.raw", "h", "/e/ü\udcff.raw", {}),
        ("nfs://h/e/\udcff@b", "h", "/e/\udcff@b", {}),
        ("nfs://h/e/a+b,,c#d&e=f", "h", "/e/a+b,,c#d&e=f", {}),
        ("nfs://h/a?version=4&version=3", "h", "/a", {"version": "3"}),
        (
            "nfs://h/a?uid=%31%30&nfsport=2049&mountport=1",
            "h",
            "/a",
            {"uid": "10", "nfsport": "2049", "mountport": "1"},
        ),
    ],
)
def test_an_nfs_url(url: str, host: str, path: str, parameters: dict[str, str]) -> None:
    found = parse(url)
    assert found == Address(host, path, parameters)
    assert parse(found.url) == found and found.url.isascii()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nfs://h/e/50%.raw", "a '%' in a name is written %25"),
        ("nfs://h/e/a%zz", "a '%' in a name is written %25"),
        ("nfs://h/e/a%2", "a '%' in a name is written %25"),
        ("nfs://h/e/a%00.raw", "NUL"),
        ("nfs://h%2Fi/e/a", "host"),
        ("nfs://h", "not of the form"),
        ("nfs:///e/a", "not of the form"),
        ("nfs://h/e/a?version=9", "the URL parameter 'version' is '9': it must be 3 or 4"),
        ("nfs://h/e/a?version=", "must be 3 or 4"),
        ("nfs://h/e/a?uid=root", "must be a number from 0 to 4294967294"),
        ("nfs://h/e/a?gid=4294967295", "must be a number from 0 to 4294967294"),
        ("nfs://h/e/a?uid=-1", "must be a number"),
        ("nfs://h/e/a?nfsport=0", "must be a number from 1 to 65535"),
        ("nfs://h/e/a?mountport=65536", "must be a number from 1 to 65535"),
        ("nfs://h:99999/e/a", "must be a number from 1 to 65535"),
        ("nfs://h/e/a?nfsport=٣", "must be a number from 1 to 65535"),
        ("nfs://h/e/a?uid=%00", "NUL"),
        ("nfs://h/e/what?.raw", "unknown URL parameter '.raw' (a '?' in a file's name is written %3F)"),
        ("nfs://h/e/a?sec=none", "must be sys, krb5"),
    ],
)
def test_what_is_no_nfs_url(url: str, why: str) -> None:
    with pytest.raises(Fatal) as caught:
        parse(url)
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("a b.raw", "a%20b.raw"),
        ("what?.raw", "what%3F.raw"),
        ("50%.raw", "50%25.raw"),
        ("a%20b", "a%2520b"),
        ("da/ta.raw", "da%2Fta.raw"),
        ("ü.raw", "%C3%BC.raw"),
        ("b\udcfcro.raw", "b%FCro.raw"),
        ("b\udcfcro.raw", "b\udcfcro.raw"),
        ("a@b,,c&d=e#f;g.raw", "a@b,,c&d=e#f;g.raw"),
        ("new\nline\x1b[31m.raw", "new%0Aline%1B[31m.raw"),
    ],
)
def test_a_name_on_a_server(nfs: NfsServer, tmp_path: Path, name: str, encoded: str) -> None:
    source, back = tmp_path / "source.raw", tmp_path / "back.raw"
    path, encoded = nfs.path(f"{tmp_path.name}/{name}"), f"{tmp_path.name}/{encoded}"
    path.parent.mkdir(parents=True)
    source.write_bytes(DATA)
    done = mpconv("convert", "-f", "raw", "-O", "raw", source, nfs.url(encoded))
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes() == DATA
    done = mpconv("convert", "--verify", "-f", "raw", "-O", "raw", nfs.url(encoded), back)
    assert (done.returncode, done.stderr) == (0, "")
    assert back.read_bytes() == DATA
    shown = subprocess.run([sys.executable, "-m", "mpconv", "info", nfs.url(encoded)], check=True, capture_output=True)
    assert b"\x1b" not in shown.stdout and b"1 MiB (1048576 bytes)" in shown.stdout


@pytest.mark.parametrize("name", ["no%20such\udcff.raw", "no\nsuch.raw", "50%.raw"])
def test_a_line_about_a_name(nfs: NfsServer, name: str) -> None:
    done = mpconv("info", nfs.url(name))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["nfs://h\udcfc.invalid/e/a", "iscsi://h\udcfc.invalid/iqn.x/1", "iscsi://h/iqn\udcff/1"]
)
def test_a_host_that_is_no_text(url: str) -> None:
    done = mpconv("info", url)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_the_mode_of_a_new_file(nfs: NfsServer, tmp_path: Path, umask: int) -> None:
    source, path = tmp_path / "source.raw", nfs.path(f"{tmp_path.name}.raw")
    source.write_bytes(DATA)
    command = [sys.executable, "-m", "mpconv", "convert", "-f", "raw", "-O", "raw", str(source), nfs.url(path.name)]
    subprocess.run(command, check=True, umask=umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("iscsi://h/iqn.x%3Ab/1", "iqn.x:b"),
        ("iscsi://u%p%41w@h/iqn.x%2fb/1", "iqn.x/b"),
        ("iscsi://h/iqn%ffb/1", "iqn\udcffb"),
        ("iscsi://h/iqn.2020-01.org.x:a@b.c/1", "iqn.2020-01.org.x:a@b.c"),
    ],
)
def test_a_target_name(url: str, target: str) -> None:
    found = login.parse(url)
    assert found.target == target
    assert found.password in ("", "p%41w"), "as it stands, as libiscsi takes it"


@pytest.mark.parametrize(
    "url", ["iscsi://u%secret@h/iqn%zz/1", "iscsi://u%secret@h/iqn%00b/1", "iscsi://u%secret@h/i%4/1"]
)
def test_what_is_no_target_name(url: str) -> None:
    with pytest.raises(Fatal) as caught:
        login.parse(url)
    assert "secret" not in str(caught.value)
