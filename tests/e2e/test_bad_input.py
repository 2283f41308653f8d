"""Every kind of bad input: one line, exit 1, quickly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import IQN, make_image, mpconv
from tests.support.servers import free_port

MiB = 1 << 20
SECONDS = 20


def refused(*arguments: object, env: dict[str, str] | None = None) -> str:
    """The one line that the command prints when it refuses."""
    done = mpconv("convert", *arguments, timeout=SECONDS, env=env)
    assert done.returncode == 1, done
    assert done.stderr.startswith("mpconv: ") and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr and "None" not in done.stderr and "(null)" not in done.stderr
    return done.stderr


@pytest.fixture
def image(tmp_path) -> Path:
    make_image(tmp_path / "a.raw", 2 * MiB)
    return tmp_path / "a.raw"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "zero"], "between 1 and 1024"),
        (["-m", "0"], "between 1 and 1024"),
        (["-m", "-3"], "between 1 and 1024"),
        (["-m", "9" * 30], "between 1 and 1024"),
        (["--workers", "0"], "--workers 0 requires --listen or --cluster: nobody would copy"),
        (["--workers", "-1"], "--workers: it must be a whole number from 0 to 256"),
        (["-S", "100"], "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512"),
        (["-S", "17M"], "Invalid buffer size"),
        (["-S", "-4k"], "Invalid buffer size"),
        (["-S", "many"], "Invalid buffer size"),
        (["-O", "vmdk"], "cannot write vmdk images yet"),
        (["-O", ""], "Unknown file format ''"),
        (["-f", ""], "Unknown driver ''"),
        (["--no-such-option"], "unrecognized option '--no-such-option'"),
    ],
)
def test_nonsense_in_options(image, tmp_path, arguments, message):
    assert message in refused(*arguments, image, tmp_path / "b.raw")
    assert not (tmp_path / "b.raw").exists()


def test_names_left_out_or_too_many(image):
    assert "Must specify image file name" in refused(image)
    assert "Must specify image file name" in refused()


@pytest.mark.parametrize("url", ["http://host/image", "nbd://host/x", "NFSS://host/x"])
def test_an_unknown_scheme(image, tmp_path, url):
    assert f"Unknown protocol '{url.split(':')[0]}'" in refused(url, tmp_path / "b.raw")
    assert "Unknown protocol" in refused(image, url)


@pytest.mark.parametrize(
    "url",
    [
        "nfs://", "nfs://host", "nfs:///export/file", "nfs://h/e/f?nonsense=1", "iscsi://", "iscsi://host",
        "iscsi://host/iqn.x", "iscsi://host/iqn.x/lun", "iscsi://127.0.0.1:99999/iqn.x/1", "null:?size=much",
        "null:?sise=2G",
    ],
)  # fmt: skip
def test_a_url_that_is_none(tmp_path, url):
    assert "Could not open" in refused(url, tmp_path / "b.raw")
    assert not (tmp_path / "b.raw").exists()


@pytest.mark.parametrize(
    ("word", "fix"),
    [("conver", "did you mean convert?"), ("x", "mpconv --help lists those that there are")],
)
def test_a_command_that_there_is_not(word, fix):
    done = mpconv(word, "a", "b")
    assert (done.returncode, done.stderr) == (1, f"mpconv: there is no command '{word}': {fix}\n")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["convert", "--workers", "300", "a", "b"], "--workers: it must be a whole number from 0 to 256"),
        (["fanout", "--jobs", "no", "plan.toml"], "--jobs: it must be a whole number from 1 to 256"),
        (
            ["deploy", "-t", "fast", "a", "b"],
            "Invalid cache option: fast: one of none, off, writeback, writethrough, directsync, unsafe",
        ),
    ],
)
def test_a_value_that_is_none_is_told_with_those_that_are(words, why):
    done = mpconv(*words)
    assert (done.returncode, done.stderr) == (1, f"mpconv: {why}\n")


def test_local_names(image, tmp_path):
    assert "No such file or directory" in refused(tmp_path / "missing", tmp_path / "b.raw")
    assert f"'file' driver requires '{tmp_path}' to be a regular file" in refused(tmp_path, tmp_path / "b.raw")
    assert "Is a directory" in refused(image, tmp_path)
    assert "No such file or directory" in refused(image, tmp_path / "no/such/b.raw")
    assert "No such file or directory" in refused("-n", image, tmp_path / "b.raw")
    assert "neither a regular file nor a block device" in refused("/dev/zero", tmp_path / "b.raw")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a regular file nor a block device" in refused(tmp_path / "pipe", tmp_path / "b.raw")
    assert "Not a directory" in refused(image / "x", tmp_path / "b.raw")


def test_a_target_that_is_the_source(image, tmp_path, nfs, lun):
    before = image.read_bytes()
    (tmp_path / "soft").symlink_to(image)
    (tmp_path / "hard").hardlink_to(image)
    for name in (image, tmp_path / "soft", tmp_path / "hard", f"file:{image}"):
        assert "source and target are the same image" in refused(image, name)
    assert image.read_bytes() == before
    make_image(nfs.path("same.raw"), MiB)
    nfs.path("same-hard.raw").hardlink_to(nfs.path("same.raw"))
    before = nfs.path("same.raw").read_bytes()
    for name in ("same.raw", "same-hard.raw"):
        assert "source and target are the same image" in refused(nfs.url("same.raw"), nfs.url(name))
    by_name = nfs.url("same.raw").replace("127.0.0.1", "localhost")
    assert "source and target are the same image" in refused(nfs.url("same.raw"), by_name)
    assert nfs.path("same.raw").read_bytes() == before
    url = lun(MiB).url
    assert "source and target are the same image" in refused(url, url)
    assert "source and target are the same image" in refused(url, url.replace("127.0.0.1", "localhost"))


def test_a_host_that_does_not_exist(tmp_path):
    for url in ("nfs://no-such-host.invalid/x/y", "iscsi://no-such-host.invalid/iqn.x/1"):
        assert "the host name 'no-such-host.invalid' cannot be resolved" in refused(url, tmp_path / "b.raw")


def test_a_port_where_nobody_listens(tmp_path, nfs):
    port = free_port()
    wrong = f"nfs://127.0.0.1{nfs.export}/x?nfsport={port}&mountport={port}"
    for url in (wrong, f"iscsi://127.0.0.1:{port}/iqn.x/1"):
        assert "Connection refused" in refused(url, tmp_path / "b.raw")


def test_a_server_that_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        assert "does not answer" in refused(f"nfs://127.0.0.1/x/y?nfsport={port}&mountport={port}", tmp_path / "b.raw")


def test_nfs_names(image, tmp_path, nfs):
    make_image(nfs.path("source.raw"), MiB)
    (nfs.export / "folder").mkdir(exist_ok=True)
    elsewhere = nfs.url("source.raw").replace(str(nfs.export), "/no/such/export")
    assert "no export for this host" in refused(elsewhere, tmp_path / "b.raw")
    assert "No such file or directory" in refused(nfs.url("missing.raw"), tmp_path / "b.raw")
    assert "No such file or directory" in refused("-n", image, nfs.url("missing.raw"))
    assert "Is a directory" in refused(nfs.url("folder"), tmp_path / "b.raw")
    assert "irectory" in refused(image, nfs.url("folder"))
    assert not nfs.path("missing.raw").exists()


def test_nfs_permissions(image, tmp_path, nfs):
    secret = nfs.unfriendly_export("squashed") / "secret.raw"
    secret.write_bytes(bytes(MiB))
    secret.chmod(0o600)
    assert "Permission denied" in refused(nfs.url("secret.raw", secret.parent), tmp_path / "b.raw")
    readonly = nfs.unfriendly_export("readonly")
    assert "Read-only file system" in refused(image, nfs.url("new.raw", readonly))
    assert not (readonly / "new.raw").exists()


def test_iscsi_names(image, tmp_path, lun):
    good = lun(4 * MiB)
    portal, _, number = good.url.rpartition("/")
    assert "Could not open" in refused(good.url.replace(IQN, "iqn.2001-01.no:such"), tmp_path / "b.raw")
    missing = refused(image, f"{portal}/{int(number) + 90}")
    assert "Could not open" in missing and "No such LUN; mpconv doctor URL says more" in missing
    small = lun(MiB)
    assert "output file is smaller than input file" in refused(image, small.url)
    assert not any(small.backing.read_bytes()), "nothing was written"


def test_a_wrong_password(image, tmp_path, iscsi):
    backing = tmp_path / "chap.img"
    backing.write_bytes(bytes(4 * MiB))
    iqn = iscsi.add_target(
        f"iqn.2026-11.org.mpconv:{tmp_path.name.lower().replace('_', '-')}", ("alice", "right-secret-1")
    )
    plain = iscsi.url(iqn, iscsi.add_lun(iqn, backing))
    for url, env in [
        (plain.replace("//", "//alice%wrong-secret-1@"), {}),
        (plain.replace("//", "//other%right-secret-1@"), {}),
        (plain, {}),
        (plain, {"LIBISCSI_CHAP_USERNAME": "alice", "LIBISCSI_CHAP_PASSWORD": "wrong-secret-1"}),
    ]:
        words = refused(image, url, env=env)
        assert "secret" not in words and "Could not open" in words
        assert words.count("Authentication failed") == 1 and words.rstrip().endswith("; mpconv doctor URL says more")
    env = {"LIBISCSI_CHAP_USERNAME": "alice", "LIBISCSI_CHAP_PASSWORD": "right-secret-1"}
    done = mpconv("convert", image, plain, env=env)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "package", "url"),
    [("libnfs", "libnfs13", "nfs://127.0.0.1/x/y"), ("libiscsi", "libiscsi7", "iscsi://127.0.0.1/iqn.x/1")],
)
def test_a_missing_library_is_named_with_its_package(image, tmp_path, name, package, url):
    """Hidden in a mount namespace of its own: an empty file lies over the library."""
    hide = (
        f"for f in $(ldconfig -p | sed -n 's/.*=> //p' | grep /{name}); do mount --bind /dev/null $f; done; exec \"$@\""
    )
    program = ["unshare", "-m", "sh", "-c", hide, "sh", sys.executable, "-m", "mpconv", "convert"]
    done = subprocess.run([*program, url, "x.raw"], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("mpconv: ") and f"apt-get install {package}" in done.stderr
    done = subprocess.run([*program, image, tmp_path / "b.raw"], capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_and_no_arguments():
    for arguments in ([], ["-h"], ["convert", "--help"]):
        done = mpconv(*arguments)
        assert "Usage:" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", [2**63 - 1, 2**63 - 2**30 + 512])
@pytest.mark.parametrize("command", ["convert {} b.raw", "convert -O qcow2 {} b.raw", "compare {0} {0}", "info {}"])
def test_a_longer_file_than_qemu_opens(tmp_path: Path, size: int, command: str):
    """Only tmpfs has any so long."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(size)
        done = mpconv(*command.format(file.name).split(), cwd=tmp_path)
    assert done.returncode == (2 if "compare" in command else 1)
    words = "Could not refresh total sector count: File too large"
    assert done.stderr == f"mpconv: Could not open '{file.name}': {words}\n"
    assert not (tmp_path / "b.raw").exists()
