"""`mpconv doctor` with real servers: what is in the way is found and told with what to do, and what is well is well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import IQN, Lun, make_image, mpconv
from tests.support.iscsi_relay import UNMAP, Listener, as_it_is, page
from tests.support.relay import Changes, Relay, iscsi_length, relay
from tests.support.servers import IscsiServer, NfsServer, free_port

MiB = 1 << 20
SIZE = 8 * MiB
QUICK = ["--seconds", "0.2"]
NO_LOW_PORTS = ["setpriv", "--bounding-set=-net_bind_service"]


def doctor(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Exit code, and what was found of each image."""
    done = mpconv("doctor", *QUICK, "--output", "json", *arguments, env=env)
    assert done.stderr == "", done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] == all(image["ok"] for image in told["images"]) == (done.returncode == 0)
    return done.returncode, told["images"]


def problem(*arguments: object, env: dict[str, str] | None = None) -> dict[str, str]:
    """The one problem of the last image."""
    code, images = doctor(*arguments, env=env)
    assert code == 2
    [found] = images[-1]["problems"]
    assert found["what"] and found["fix"]
    return found


@pytest.fixture
def file(nfs: NfsServer, tmp_path: Path) -> Iterator[Path]:
    path = nfs.path(f"{tmp_path.name}.raw")
    with path.open("wb") as opened:  # data up to 3 MiB, and from 6 to 7 MiB
        opened.truncate(SIZE)
        opened.write(os.urandom(3 * MiB))
        opened.seek(6 * MiB)
        opened.write(os.urandom(MiB))
        os.fsync(opened.fileno())
    yield path
    path.unlink(missing_ok=True)


# -- all is well


def test_a_good_nfs_file(nfs: NfsServer, file: Path) -> None:
    before = file.read_bytes()
    code, [found] = doctor(nfs.url(file.name))
    facts = found["facts"]
    assert (code, found["problems"], found["advice"], found["role"]) == (0, [], [], None)
    assert facts["nfs-versions"] == ["3", "4.0", "4.1", "4.2"]
    assert facts["mounted"] == str(nfs.export)
    assert facts["server"]["port"] == nfs.port and 0 < facts["server"]["round_trip"] < 1
    assert facts["requests"] == {"read": MiB, "write": MiB}
    assert (facts["size"], facts["format"], facts["hole-map"]) == (SIZE, "raw", True)
    assert facts["permitted"] == ["read", "write"]
    assert facts["holes"] == 4 * MiB
    assert facts["room"] > SIZE
    shapes = [(cell["what"], cell["size"], cell["depth"]) for cell in found["speed"]]
    assert shapes == [("read", size, depth) for size, depth in ((4096, 1), (4096, 16), (MiB, 1), (MiB, 4), (MiB, 16))]
    assert all(0 < cell["median"] <= cell["worst"] and cell["rate"] > 0 for cell in found["speed"])
    assert found["choice"]["workers"] == 1 and 8 <= found["choice"]["requests"] <= 72
    assert file.read_bytes() == before


def test_a_good_lun(lun: Callable[..., Lun]) -> None:
    made = lun(SIZE, block_size=4096)
    with made.backing.open("r+b") as backing:
        backing.write(b"\xa5" * 3 * MiB)
    before = made.backing.read_bytes()
    code, [found] = doctor(made.url)
    facts = found["facts"]
    assert (code, found["problems"], found["advice"]) == (0, [], [])
    assert (facts["block-size"], facts["thin"], facts["unmapped-zeros"], facts["hole-map"]) == (4096, True, True, True)
    assert facts["unmap"]["unmap"] and facts["unmap"]["write_same"] and facts["unmap"]["granularity"] == 4096
    assert facts["holes"] == 5 * MiB
    assert "VIRTUAL-DISK" in facts["device"]
    assert facts["initiator"].startswith("iqn.2026-11.org.mpconv:")
    assert made.backing.read_bytes() == before


def test_limits_of_a_lun(lun: Callable[..., Lun]) -> None:
    """Maximum and optimal transfer length, of page B0."""
    with between(lun(SIZE).url, answer=page(0xB0, 8, bytes.fromhex("00000200 00000100"))) as (url, _):
        _, [found] = doctor(url)
        assert found["facts"]["requests"] == {"largest": 256 * 1024, "optimal": 128 * 1024, "used": 256 * 1024}


def test_for_people(nfs: NfsServer, file: Path) -> None:
    done = mpconv("doctor", *QUICK, nfs.url(file.name))
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == nfs.url(file.name) and lines[-1] == "nothing is in the way"
    assert "  nfs versions    3, 4.0, 4.1, 4.2" in lines
    assert max(map(len, lines[1:])) <= 100
    table = [line for line in lines if line.startswith("  read ")]
    assert len(table) == 5 and len({len(line) for line in table}) == 1


def test_a_source_and_a_target_that_is_not_there(nfs: NfsServer, file: Path) -> None:
    target = file.with_name(f"new-{file.name}")
    code, [source, made] = doctor(nfs.url(file.name), nfs.url(target.name))
    assert (code, source["role"], made["role"]) == (0, "source", "target")
    assert made["facts"]["target"] == "new"
    assert not target.exists()


def test_a_local_file(tmp_path: Path) -> None:
    make_image(tmp_path / "a.raw", SIZE)
    code, [found] = doctor(tmp_path / "a.raw")
    assert (code, found["facts"]["size"], found["facts"]["hole-map"]) == (0, SIZE, True)
    assert found["facts"]["file-system"]["free"] > 0


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    code, [found] = doctor(tmp_path / "empty")
    assert (code, found["facts"]["size"], found["speed"]) == (0, 0, [])


# -- NFS


def test_an_export_that_is_not_there(nfs: NfsServer, file: Path) -> None:
    found = problem(nfs.url(file.name, Path("/no/such")))
    assert found["code"] == "export"
    assert "/no/such is not exported" in found["what"] and str(nfs.export) in found["what"]
    assert "export it to this host" in found["fix"]


def test_an_export_for_low_ports_only(nfs: NfsServer) -> None:
    folder = nfs.unfriendly_export("privileged")
    make_image(folder / "low.raw", SIZE)
    url = nfs.url("low.raw", folder)
    assert doctor(url)[0] == 0
    command = [*NO_LOW_PORTS, sys.executable, "-m", "mpconv", "doctor", "--output", "json", *QUICK, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    [found] = json.loads(done.stdout)["images"][0]["problems"]
    assert found["code"] == "ports"
    assert "run as root" in found["fix"] and "insecure" in found["fix"]


def test_a_server_of_another_version(tmp_path: Path) -> None:
    with NfsServer(tmp_path / "four", protocols="4") as server:
        make_image(server.path("a.raw"), SIZE)
        url = server.url("a.raw")
        found = problem(url)
        assert found["code"] == "nfs-version"
        assert "asks for NFSv3" in found["what"] and "4.0, 4.1, 4.2" in found["what"]
        assert f"{url}&version=4" in found["fix"]
        code, [good] = doctor(f"{url}&version=4")
        assert (code, good["facts"]["hole-map"]) == (0, True), "what it says to do works"


def test_a_server_without_nfs_4(tmp_path: Path) -> None:
    with NfsServer(tmp_path / "three", protocols="3") as server:
        make_image(server.path("a.raw"), SIZE)
        found = problem(f"{server.url('a.raw')}&version=4")
        assert found["code"] == "nfs-version" and "take version=4 out" in found["fix"]
        code, [three] = doctor(server.url("a.raw"))
        assert (code, three["facts"]["nfs-versions"], three["facts"]["hole-map"]) == (0, ["3"], False)
        [advice] = three["advice"]
        assert advice["code"] == "no-hole-map" and "Minor_Versions" in advice["fix"]


def test_a_server_without_nfs_4_2(tmp_path: Path) -> None:
    with NfsServer(tmp_path / "old", minor_versions="0,1") as server:
        make_image(server.path("a.raw"), SIZE)
        _, [found] = doctor(server.url("a.raw"))
        assert found["facts"]["nfs-versions"] == ["3", "4.0", "4.1"]
        assert "does not offer NFSv4.2" in found["advice"][0]["what"]


def test_a_missing_file(nfs: NfsServer) -> None:
    found = problem(nfs.url("missing.raw"))
    assert found["code"] == "missing" and "there is no 'missing.raw'" in found["what"]
    assert not nfs.path("missing.raw").exists()


def test_a_missing_directory(nfs: NfsServer) -> None:
    found = problem(nfs.url("no/such/a.raw"))
    assert found["code"] == "missing-directory" and f"no directory {nfs.export}/no/such" in found["what"]
    four = f"{nfs.url('no/such/a.raw')}&version=4"
    assert problem(four)["code"] == "missing-directory"


def test_permission_denied(nfs: NfsServer) -> None:
    secret = nfs.unfriendly_export("squashed") / "doctor-secret.raw"
    secret.write_bytes(bytes(MiB))
    secret.chmod(0o600)
    found = problem(nfs.url(secret.name, secret.parent))
    assert found["code"] == "permission" and "no_root_squash" in found["fix"]


def test_a_target_that_may_only_be_read(nfs: NfsServer, file: Path) -> None:
    readonly = nfs.unfriendly_export("readonly")
    make_image(readonly / "ro.raw", SIZE)
    assert doctor(nfs.url("ro.raw", readonly))[0] == 0, "as a source it is well"
    found = problem(nfs.url(file.name), nfs.url("ro.raw", readonly))
    assert found["code"] == "not-writable" and "rw" in found["fix"]
    found = problem(nfs.url(file.name), nfs.url("new.raw", readonly))
    assert found["code"] == "not-creatable"


def test_source_and_target_are_one(nfs: NfsServer, file: Path) -> None:
    by_name = nfs.url(file.name).replace("127.0.0.1", "localhost")
    assert problem(nfs.url(file.name), by_name)["code"] == "same"


# -- nobody there


@pytest.mark.parametrize("form", ["nfs://127.0.0.1/x/y?nfsport={0}&mountport={0}", "iscsi://127.0.0.1:{0}/iqn.x/1"])
def test_a_server_that_is_not_there(form: str) -> None:
    found = problem(form.format(free_port()))
    assert found["code"] == "unreachable"
    assert "Connection refused" in found["what"] and "start the server" in found["fix"]


def test_a_host_that_is_not_there() -> None:
    found = problem("iscsi://no-such-host.invalid/iqn.x/1")
    assert found["code"] == "unreachable" and "cannot be resolved" in found["what"] and "DNS" in found["fix"]


@pytest.mark.parametrize("form", ["nfs://127.0.0.1/x/y?nfsport={0}&mountport={0}", "iscsi://127.0.0.1:{0}/iqn.x/1"])
def test_a_server_that_never_answers(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        found = problem(form.format(mute.getsockname()[1]))
        assert found["code"] == "silent" and time.monotonic() - started < 15


# -- iSCSI


def test_a_wrong_password(tmp_path: Path, iscsi: IscsiServer) -> None:
    backing = tmp_path / "chap.img"
    backing.write_bytes(bytes(SIZE))
    name = tmp_path.name.lower().replace("_", "-")
    iqn = iscsi.add_target(f"iqn.2026-11.org.mpconv:{name}", ("bob", "right-secret-1"))
    url = iscsi.url(iqn, iscsi.add_lun(iqn, backing))
    found = problem(url)
    assert found["code"] == "chap" and "LIBISCSI_CHAP_USERNAME" in found["fix"]
    done = mpconv("doctor", *QUICK, url.replace("//", "//bob%wrong-secret-1@"))
    assert (done.returncode, done.stderr) == (2, "")
    assert "does not take user 'bob'" in done.stdout and "secret" not in done.stdout
    env = {"LIBISCSI_CHAP_USERNAME": "bob", "LIBISCSI_CHAP_PASSWORD": "right-secret-1"}
    assert doctor(url, env=env)[0] == 0


def test_a_lun_or_target_that_is_not_there(lun: Callable[..., Lun]) -> None:
    portal, _, number = lun(SIZE).url.rpartition("/")
    found = problem(f"{portal}/9999")
    assert found["code"] == "no-lun" and "9999" in found["what"] and "the target has LUN 1" in found["fix"]
    found = problem(f"{portal.replace(IQN, 'iqn.2001-01.no:such')}/{number}")
    assert found["code"] == "no-target" and "iqn.2026-11.org.mpconv:" in found["fix"]


def test_a_lun_that_is_too_small(lun: Callable[..., Lun], nfs: NfsServer, file: Path) -> None:
    small = lun(MiB)
    found = problem(nfs.url(file.name), small.url)
    assert found["code"] == "too-small" and f"make it at least {SIZE} bytes" in found["fix"]
    assert not any(small.backing.read_bytes())


def test_a_lun_that_is_too_small_for_the_disk_in_a_small_file(lun: Callable[..., Lun], tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", "64M"], check=True)
    _, [source, target] = doctor(tmp_path / "a.qcow2", lun(SIZE).url)
    assert source["facts"]["format"] == "qcow2"
    assert [one["code"] for one in target["problems"]] == ["too-small"]


def test_no_thin_provisioning(lun: Callable[..., Lun]) -> None:
    code, [found] = doctor(lun(SIZE, thin=False).url)
    assert (code, found["facts"]["thin"], found["facts"]["hole-map"]) == (0, False, False)
    [advice] = found["advice"]
    assert advice["code"] == "not-thin" and "thin_provisioning=1" in advice["fix"]


def test_no_promise_of_zeros(lun: Callable[..., Lun]) -> None:
    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[:2] == b"\x9e\x10":
            data[14] = 0x80

    with between(lun(SIZE).url, answer=change) as (url, _):
        code, [found] = doctor(url)
        assert (code, found["facts"]["unmapped-zeros"]) == (0, False)
        assert [one["code"] for one in found["advice"]] == ["no-zero-promise"]


def test_a_lun_that_is_write_protected(lun: Callable[..., Lun], file: Path, nfs: NfsServer) -> None:
    made = lun(SIZE, readonly=True)
    assert doctor(made.url)[1][0]["facts"]["permitted"] == ["read"]
    assert problem(nfs.url(file.name), made.url)["code"] == "not-writable"


def test_holes_that_are_none(lun: Callable[..., Lun]) -> None:
    """A target that calls blocks with data unmapped."""
    made = lun(SIZE, old_data=True)

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[:2] == b"\x9e\x12":
            data[8 + 12] = 1

    with between(made.url, answer=change) as (url, _):
        assert problem(url)["code"] == "holes-lie"


# -- what only writing tells


class between:
    """A relay to a LUN, and the LUN's URL through it."""

    def __init__(self, url: str, command: Any = as_it_is, answer: Any = as_it_is) -> None:
        self._portal = url.split("/")[2]
        self._url = url
        self._listener = Listener(command, answer)
        host, _, port = self._portal.partition(":")
        self._relay = relay(host, int(port), Changes(iscsi_length, self._listener.sent, self._listener.answered))

    def __enter__(self) -> tuple[str, Listener]:
        opened: Relay = self._relay.__enter__()
        return self._url.replace(self._portal, f"127.0.0.1:{opened.port}"), self._listener

    def __exit__(self, *error: Any) -> None:
        self._relay.__exit__(*error)


def pretending(cdb: bytearray, data: bytearray) -> None:
    """A target that answers GOOD to UNMAP and does nothing: tgt does, for no blocks."""
    if cdb[0] == UNMAP:
        data[16:20] = bytes(4)


def test_a_target_that_lies_about_unmap(lun: Callable[..., Lun]) -> None:
    made = lun(SIZE, old_data=True)
    with between(made.url, pretending) as (url, told):
        assert doctor(url)[0] == 0 and not told.of(UNMAP), "nothing is written without being told to"
        found = problem("--write-test", url)
        assert found["code"] == "unmap-lies"
        assert "answers GOOD to unmap, and 4 MiB of 4 MiB are no zeros" in found["what"]
        assert "thin_provisioning=0" in found["fix"]
        assert told.of(UNMAP)


def test_a_target_that_unmaps_a_part_of_what_it_says(lun: Callable[..., Lun]) -> None:
    """Samples would find that in one of many times; all of it is read back."""

    def change(cdb: bytearray, data: bytearray) -> None:
        if cdb[0] == UNMAP:
            blocks = int.from_bytes(data[16:20])
            data[16:20] = (blocks // 2).to_bytes(4)

    with between(lun(SIZE).url, change) as (url, _):
        found = problem("--write-test", url)
        assert found["code"] == "unmap-lies" and "2 MiB of 4 MiB" in found["what"]


def test_a_lun_is_tested_by_writing(lun: Callable[..., Lun]) -> None:
    made = lun(SIZE, old_data=True)
    code, [found] = doctor("--write-test", made.url)
    facts = found["facts"]
    assert code == 0
    assert facts["zeros-proved"] == dict.fromkeys(["write-same-unmap", "unmap", "write-same", "write-same-10"], "zeros")
    assert facts["written"] == {"start": 4 * MiB, "length": 4 * MiB} and facts["flush"] > 0
    assert [cell["what"] for cell in found["speed"]] == ["read"] * 5 + ["write"] * 5
    there = made.backing.read_bytes()
    assert there[: 4 * MiB] == b"\xa5" * 4 * MiB, "nothing else was touched"
    assert not any(there[4 * MiB :])


def test_an_nfs_file_is_tested_by_writing(nfs: NfsServer, file: Path) -> None:
    before = file.read_bytes()
    code, [found] = doctor("--write-test", nfs.url(file.name))
    assert (code, found["facts"]["zeros-proved"]) == (0, "blocks are freed (DEALLOCATE, NFSv4.2)")
    assert file.read_bytes() == before[: 4 * MiB] + bytes(4 * MiB)


def test_the_source_is_never_overwritten(nfs: NfsServer, file: Path, lun: Callable[..., Lun]) -> None:
    before = file.read_bytes()
    source = nfs.url(file.name)
    done = mpconv("doctor", *QUICK, "--write-test", source, source, lun(SIZE).url)
    assert done.returncode == 1 and "names the source" in done.stderr
    by_name = source.replace("127.0.0.1", "localhost")
    _, [_, target] = doctor("--write-test", by_name, source)
    assert [one["code"] for one in target["problems"]] == ["same", "not-tested"]
    assert file.read_bytes() == before


# -- local files, and the command line


def test_a_local_file_that_is_not_to_be_had(tmp_path: Path) -> None:
    assert problem(tmp_path / "missing")["code"] == "missing"
    nowhere = problem(tmp_path / "no" / "such" / "image")
    assert nowhere["code"] == "missing-directory" and f"'{tmp_path}/no/such'" in nowhere["what"]
    assert problem(tmp_path)["what"] == "it is a directory"
    assert problem(tmp_path)["code"] == "not-a-store"


def test_a_file_that_another_program_has_open(tmp_path: Path) -> None:
    make_image(tmp_path / "a.raw", SIZE)
    command = ["qemu-io", "-f", "raw", str(tmp_path / "a.raw")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None and qemu.stdout is not None
        assert qemu.stdout.read(len("qemu-io> ")) == b"qemu-io> "
        try:
            found = problem(tmp_path / "a.raw")
        finally:
            qemu.stdin.close()
    assert found["code"] == "in-use" and "QEMU" in found["fix"]


def test_a_device_that_is_mounted(tmp_path: Path) -> None:
    make_image(tmp_path / "a.raw", MiB)
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    attached = subprocess.run(["losetup", "--find", "--show", tmp_path / "disk"], capture_output=True, check=False)
    if attached.returncode != 0:
        pytest.skip(f"no loop devices here: {attached.stderr.decode()}")
    device = attached.stdout.decode().strip()
    try:
        assert doctor(tmp_path / "a.raw", device)[0] == 0
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        (tmp_path / "mnt").mkdir()
        subprocess.run(["mount", device, tmp_path / "mnt"], check=True)
        try:
            found = problem(tmp_path / "a.raw", device)
            _, images = doctor(tmp_path / "a.raw", "--write-test", device)
        finally:
            subprocess.run(["umount", tmp_path / "mnt"], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert found["code"] == "in-use" and "unmount it" in found["fix"]
    assert [one["code"] for one in images[-1]["problems"]] == ["in-use", "not-tested"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Expecting the URL"),
        (["null:"], "no storage that could be examined"),
        (["nfs://host"], "not of the form nfs://"),
        (["http://host/x"], "Unknown protocol 'http'"),
        (["--output", "xml", "x"], "--output must be used with human or json"),
        (["--seconds", "much", "x"], "much"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], words: str) -> None:
    done = mpconv("doctor", *arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr
