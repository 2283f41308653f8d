"""A password on the command line is neither in what the command says nor, once it runs, in the list of processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import make_image, mpconv

MiB = 1 << 20
PASSWORDS = ["sec/ret", "sec,ret", "sec?ret", "sec%ret", "a/b,c?d@e", "se cret"]
FORMS = ["iscsi://user%{}@127.0.0.1:1/iqn.x:y/1", "iscsi://user%{}@127.0.0.1:1/", "nfs://u:{}@127.0.0.1:1/e/f"]
PARTS = ("ret", "b,c", "c?d", "cret")


def commands(url: str, image: Path, tmp_path: Path) -> list[list[str]]:
    """Each of which fails, some before anything is opened."""
    out = str(tmp_path / "out.raw")
    return [
        ["convert", url, out],
        ["convert", "-n", str(image), url],
        ["convert", "-f", "vmdk", url, out],
        ["convert", "-c", str(image), url],
        ["convert", "-O", "qcow2", "-o", f"backing_file={url.replace(',', ',,')},backing_fmt=raw", str(image), out],
        ["deploy", str(image), url, url],
        ["compare", str(image), url],
        ["info", url],
        ["map", url],
        ["measure", url],
        ["check", url],
        ["checksum", url],
        ["doctor", "--seconds", "0.1", url],
    ]


@pytest.mark.parametrize("password", PASSWORDS)
def test_nothing_that_is_said_holds_it(password, tmp_path):
    """Each command with one form of URL, with another one with the next password."""
    make_image(tmp_path / "a.raw", MiB)
    asked = [commands(form.format(password), tmp_path / "a.raw", tmp_path) for form in FORMS]
    for number, forms in enumerate(zip(*asked, strict=True), PASSWORDS.index(password)):
        words = forms[number % len(FORMS)]
        done = mpconv(*words, "--retry-for=0" if words[0] in ("convert", "deploy", "compare") else "--", timeout=30)
        assert done.returncode != 0, words
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        assert not [part for part in PARTS if part in said], (words, said)


@pytest.mark.parametrize("password", PASSWORDS)
def test_the_list_of_processes_does_not_show_it(password):
    """Once the command runs, which waits here for a list of targets on its stdin."""
    url = f"iscsi://user%{password}@127.0.0.1:1/iqn.x:y/1"
    option = f"driver=raw,file.driver=iscsi,file.password={password.replace(',', ',,')}"
    words = [sys.executable, "-m", "mpconv", "deploy", "--targets", "-", url, url, option]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        end = time.monotonic() + 30
        while "file.password=xx" not in (shown := Path(f"/proc/{running.pid}/cmdline").read_text()):
            assert running.poll() is None and time.monotonic() < end, shown
            time.sleep(0.01)
        running.kill()
    assert shown.count("user%xx") == 2 and not [part for part in PARTS if part in shown]
