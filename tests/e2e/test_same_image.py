"""One image under two names as source and target: refused before a byte of it is touched; and what only looks so."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpconv.model.units import MiB
from tests.conftest import Lun, identical, make_image, mpconv
from tests.support.faulty_target import IQN as FAKE
from tests.support.faulty_target import FaultyTarget
from tests.support.servers import IscsiServer, NfsServer

SIZE = 8 * MiB
TWO_PORTALS = "iqn.2026-11.org.mpconv:portals"
INNER = "inner"


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    """At every address of this host, with an export in its export."""
    with NfsServer(tmp_path_factory.mktemp("everywhere"), address="0.0.0.0", inner=(INNER,)) as server:
        yield server


def at(server: NfsServer, address: str, path: Path, query: str = "", export: Path | None = None) -> str:
    """The URL of a file of the inner export. `export`: another name of that."""
    return server.url(path.name, export or path.parent).replace("0.0.0.0", address) + query


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(source: Path, one: object, other: object, *options: object) -> str:
    """The line of a copy that is refused, and leaves the source as it is."""
    before, times = digest(source), os.stat(source)
    done = mpconv("convert", *options, one, other)
    assert digest(source) == before
    assert done.returncode == 1, done.stderr
    assert os.stat(source).st_ctime_ns == times.st_ctime_ns
    [line] = done.stderr.splitlines()
    assert done.stdout == ""
    return line


NAMES: dict[str, Callable[[NfsServer, Path], tuple[str, str]]] = {
    "two addresses": lambda server, path: (at(server, "127.0.0.1", path), at(server, "127.0.0.2", path)),
    "two addresses, NFSv4": lambda server, path: (
        at(server, "127.0.0.1", path, "&version=4"),
        at(server, "127.0.0.2", path, "&version=3"),
    ),
    "path and URL": lambda server, path: (str(path), at(server, "127.0.0.1", path)),
    "URL and path": lambda server, path: (at(server, "127.0.0.2", path), str(path)),
    "URL and symlink": lambda server, path: (at(server, "127.0.0.2", path), str(linked(path, os.symlink))),
    "two exports": lambda server, path: (
        at(server, "127.0.0.1", path, "&version=4", export=server.inner_pseudo(INNER)),
        at(server, "127.0.0.1", path),
    ),
    "two exports, two addresses": lambda server, path: (
        at(server, "127.0.0.1", path, "&version=4", export=server.inner_pseudo(INNER)),
        at(server, "127.0.0.2", path),
    ),
    "hard link": lambda server, path: (str(path), str(linked(path, os.link))),
    "hard link and URL": lambda server, path: (str(path), at(server, "127.0.0.1", linked(path, os.link))),
    "symlink and dots": lambda server, path: (str(path), f"{path.parent}/./../{INNER}/{path.name}"),
}


def linked(path: Path, link: Callable[[Path, Path], None]) -> Path:
    other = path.with_name("other-" + path.name)
    link(path, other)
    return other


@pytest.fixture
def exported(everywhere: NfsServer, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = everywhere.path(INNER) / f"{abs(hash(request.node.name))}.raw"
    make_image(path, SIZE)
    yield path
    for one in path.parent.iterdir():
        one.unlink()


@pytest.mark.parametrize("options", [(), ("-n", "-W"), ("-O", "qcow2"), ("--verify",)], ids=" ".join)
@pytest.mark.parametrize("names", NAMES)
def test_one_file_under_two_names(everywhere: NfsServer, exported: Path, names: str, options: tuple[str, ...]) -> None:
    one, other = NAMES[names](everywhere, exported)
    line = refused(exported, one, other, *options)
    assert "same image" in line
    for name in (one, other):
        assert f"'{name}'" in line


def test_who_knows_better_may_say_so(everywhere: NfsServer, exported: Path) -> None:
    """What is only probable: here it is wrong to say so, and the last net holds."""
    one, other = NAMES["path and URL"](everywhere, exported)
    assert "--allow-same-image" in refused(exported, one, other)
    done = mpconv("convert", "--allow-same-image", one, other)
    assert done.returncode == 1
    assert "changed when the target was made" in done.stderr


def test_a_bind_mount(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    make_image(tmp_path / "a/x", SIZE)
    subprocess.run(["mount", "--bind", tmp_path / "a", tmp_path / "b"], check=True)
    try:
        assert "same image" in refused(tmp_path / "a/x", tmp_path / "a/x", tmp_path / "b/x")
    finally:
        subprocess.run(["umount", tmp_path / "b"], check=True)


def test_two_files_on_one_server_are_two(everywhere: NfsServer, exported: Path) -> None:
    other = exported.with_name("target.raw")
    for _ in range(2):
        done = mpconv("convert", at(everywhere, "127.0.0.1", exported), at(everywhere, "127.0.0.2", other))
        assert done.returncode == 0, done.stderr
        assert identical(exported, other)


@pytest.fixture
def loop() -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def attach(path: Path, *options: str) -> str:
        command = ["losetup", *options, "--find", "--show", path]
        made.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        return made[-1]

    yield attach
    for device in made:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("options", [(), ("-n",)], ids=["", "-n"])
@pytest.mark.parametrize("back", [False, True])
def test_a_loop_device_over_the_source(
    loop: Callable[..., str], tmp_path: Path, back: bool, options: tuple[str, ...]
) -> None:
    source = tmp_path / "source.raw"
    make_image(source, SIZE)
    names = [str(source), loop(source)]
    one, other = reversed(names) if back else names
    line = refused(source, one, other, "-f", "raw", *options)
    assert f"same image: '{one}' and '{other}'" in line


def test_two_loop_devices_over_one_file(loop: Callable[..., str], tmp_path: Path) -> None:
    """Where they overlap; parts that lie apart are two."""
    file = tmp_path / "disk.raw"
    make_image(file, SIZE)
    half = str(SIZE // 2)
    whole, first, second = loop(file), loop(file, "--sizelimit", half), loop(file, "--offset", half)
    assert "same image" in refused(file, first, whole, "-n", "-f", "raw")
    assert "same image" in refused(file, second, whole, "-n", "-f", "raw")
    done = mpconv("convert", "-n", "-f", "raw", first, second)
    assert done.returncode == 0, done.stderr
    content = file.read_bytes()
    assert content[: SIZE // 2] == content[SIZE // 2 :]


def test_a_loop_device_over_an_exported_file(loop: Callable[..., str], everywhere: NfsServer, exported: Path) -> None:
    device = loop(exported)
    assert "same image" in refused(exported, device, at(everywhere, "127.0.0.1", exported), "-f", "raw")


def node_of(name: str, directory: Path) -> str:
    """A device file of a partition: not every machine makes them."""
    major, minor = next(Path("/sys/block").glob(f"*/{name}/dev")).read_text().split(":")
    path = directory / name
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    return str(path)


def test_a_partition_and_its_disk(loop: Callable[..., str], tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_image(disk, SIZE)
    device = loop(disk)
    for number, start in (("1", "2048"), ("2", "8192")):
        subprocess.run(["addpart", device, number, start, "2048"], check=True)
    try:
        first, second = (node_of(f"{Path(device).name}p{number}", tmp_path) for number in (1, 2))
        for one, other in ((device, first), (first, device), (first, str(disk)), (str(disk), second)):
            assert "same image" in refused(disk, one, other, "-n", "-f", "raw")
        done = mpconv("convert", "-n", "-f", "raw", first, second)
        assert done.returncode == 0, done.stderr
    finally:
        for number in ("1", "2"):
            subprocess.run(["delpart", device, number], check=True)


def test_the_disk_on_which_the_source_is_a_file(loop: Callable[..., str], tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(4 * SIZE)
    device, where = loop(disk), tmp_path / "mounted"
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, where], check=True)
    try:
        source = where / "source.raw"
        make_image(source, SIZE)
        done = mpconv("convert", "-n", source, device)
        assert done.returncode == 1
        assert f"the target '{device}' is the disk on which the source '{source}' lies" in done.stderr
    finally:
        subprocess.run(["umount", where], check=True)
    assert not subprocess.run(["e2fsck", "-nf", device], check=False, capture_output=True).returncode


@pytest.fixture(scope="module")
def portals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IscsiServer]:
    with IscsiServer(tmp_path_factory.mktemp("portals"), address="0.0.0.0") as server:
        server.add_target(TWO_PORTALS)
        yield server


def lun_of(server: IscsiServer, iqn: str, backing: Path, *, zeros: bool = False) -> tuple[str, str]:
    """By two portals."""
    if zeros:
        with backing.open("wb") as file:
            file.truncate(SIZE)
    else:
        make_image(backing, SIZE)
    url = server.url(iqn, server.add_lun(iqn, backing))
    return url.replace("0.0.0.0", "127.0.0.1"), url.replace("0.0.0.0", "127.0.0.2")


@pytest.mark.parametrize("options", [(), ("-n", "-W"), ("-O", "qcow2"), ("--verify",)], ids=" ".join)
def test_one_lun_by_two_portals(portals: IscsiServer, tmp_path: Path, options: tuple[str, ...]) -> None:
    backing = tmp_path / "lun.img"
    one, other = lun_of(portals, TWO_PORTALS, backing)
    line = refused(backing, one, other, "-f", "raw", *options)
    assert f"probably the same image: '{one}' and '{other}'" in line
    assert "--allow-same-image" in line


@pytest.mark.parametrize("options", [(), ("-n",)], ids=["", "-n"])
def test_a_lun_and_the_file_behind_it(lun: Callable[..., Lun], options: tuple[str, ...]) -> None:
    made = lun(SIZE)
    make_image(made.backing, SIZE)
    assert "probably the same image" in refused(made.backing, made.url, made.backing, *options)
    assert "probably the same image" in refused(made.backing, made.backing, made.url, *options)


def test_a_lun_is_copied_to_the_same_file_every_night(lun: Callable[..., Lun], tmp_path: Path) -> None:
    made, backup = lun(SIZE), tmp_path / "backup.raw"
    make_image(made.backing, SIZE)
    for _ in range(2):
        done = mpconv("convert", made.url, backup)
        assert done.returncode == 0, done.stderr
        assert identical(made.backing, backup)


def test_one_template_is_deployed_to_the_same_luns_twice(lun: Callable[..., Lun]) -> None:
    template, *targets = (lun(SIZE) for _ in range(4))
    make_image(template.backing, SIZE)
    for _ in range(2):
        done = mpconv("deploy", "-f", "raw", template.url, *(target.url for target in targets))
        assert done.returncode == 0, done.stderr
        assert all(identical(template.backing, target.backing) for target in targets)


def test_luns_of_two_servers_that_call_themselves_alike(
    portals: IscsiServer, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Two tgt give their first LUNs the same designators and serial numbers: contents and names tell them apart."""
    with IscsiServer(tmp_path_factory.mktemp("other")) as other:
        other.add_target("iqn.2026-11.org.mpconv:other")
        numbers = range(int(lun_of(portals, TWO_PORTALS, tmp_path / "next")[0].rpartition("/")[2]))
        luns = [lun_of(other, "iqn.2026-11.org.mpconv:other", tmp_path / f"b{n}", zeros=True)[0] for n in numbers]
        source, target = lun_of(portals, TWO_PORTALS, tmp_path / "a")[0], luns[-1]
        target = lun_of(other, "iqn.2026-11.org.mpconv:other", tmp_path / "b", zeros=True)[0]
        assert source.rpartition("/")[2] == target.rpartition("/")[2]
        for _ in range(2):
            done = mpconv("convert", "-f", "raw", source, target)
            assert done.returncode == 0, done.stderr
            assert identical(tmp_path / "a", tmp_path / "b")


ROADS = {
    "target names": (f"{FAKE}/1", "iqn.2020-01.org.fake:other/1"),
    "LUN numbers": (f"{FAKE}/1", f"{FAKE}/7"),
    "both": (f"{FAKE}/7", "iqn.2020-01.org.fake:other/1"),
}


@pytest.mark.parametrize("zeros_told", [True, False])
@pytest.mark.parametrize("road", ROADS)
def test_one_lun_by_two(tmp_path: Path, road: str, zeros_told: bool) -> None:
    """Of a disk with little data, that tells where it is or does not."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(4 * SIZE)
        file.seek(3 * SIZE + 512)
        file.write(os.urandom(70_000))
    with FaultyTarget(path=disk, luns={1, 7}, thin=zeros_told, lbprz=zeros_told) as target:
        one, other = (f"iscsi://127.0.0.1:{target.port}/{name}" for name in ROADS[road])
        line = refused(disk, one, other, "-f", "raw", "-O", "qcow2")
        assert f"probably the same image: '{one}' and '{other}'" in line


@pytest.mark.parametrize("back", [False, True])
def test_luns_with_one_name_and_other_contents_are_two(tmp_path: Path, back: bool) -> None:
    """A clone of a disk array may keep the name of what it was made from."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(SIZE)
    make_image(paths[0], SIZE)
    if back:
        paths.reverse()
    with FaultyTarget(path=paths[0]) as one, FaultyTarget(path=paths[1]) as other:
        urls = [f"iscsi://127.0.0.1:{target.port}/{FAKE}/1" for target in (one, other)]
        done = mpconv("convert", "-f", "raw", *urls)
        assert done.returncode == 0, done.stderr
        assert identical(*paths)
        assert "probably the same" in refused(paths[0], *urls, "-f", "raw")
        done = mpconv("convert", "-f", "raw", "--allow-same-image", *urls)
        assert done.returncode == 0, done.stderr


PLANS = {
    "a target is another job's source": (("one", "{path}", "{new}1"), ("two", "{other}", "{url}")),
    "a source is another job's target": (("one", "{other}", "{url}"), ("two", "{path}", "{new}1")),
    "two targets": (("one", "{other}", "{path}"), ("two", "{other}", "{url}")),
}


def planned(tmp_path: Path, jobs: tuple[tuple[str, str, str], ...], **names: object) -> Path:
    plan = tmp_path / "plan.toml"
    text = ""
    for name, source, target in jobs:
        text += f'[[job]]\nname = "{name}"\nsource = "{source.format(**names)}"\ntarget = "{target.format(**names)}"\n'
    plan.write_text(text)
    return plan


@pytest.mark.parametrize("command", [("fanout",), ("fanout", "--check")], ids=" ".join)
@pytest.mark.parametrize("jobs", PLANS)
def test_jobs_of_one_plan_that_meet(
    everywhere: NfsServer, exported: Path, tmp_path: Path, jobs: str, command: tuple[str, ...]
) -> None:
    make_image(tmp_path / "other.raw", SIZE, seed=2)
    url = at(everywhere, "127.0.0.2", exported)
    plan = planned(tmp_path, PLANS[jobs], path=exported, other=tmp_path / "other.raw", url=url, new=tmp_path / "new")
    before = digest(exported)
    done = mpconv(*command, plan)
    assert digest(exported) == before
    assert not (tmp_path / "new1").exists()
    assert done.returncode == 1
    assert str(exported) in done.stderr
    assert url in done.stderr
    assert "--allow-same-image" in done.stderr


def test_jobs_of_one_plan_that_do_not_meet(everywhere: NfsServer, exported: Path, tmp_path: Path) -> None:
    """Two of one source are none."""
    url = at(everywhere, "127.0.0.2", exported)
    jobs = ("one", "{path}", "{new}1"), ("two", "{url}", "{new}2")
    plan = planned(tmp_path, jobs, path=exported, url=url, new=tmp_path / "new")
    for _ in range(2):
        done = mpconv("fanout", plan)
        assert done.returncode == 0, done.stderr
        assert all(identical(exported, tmp_path / f"new{number}") for number in (1, 2))


@pytest.mark.parametrize("there", [True, False])
def test_targets_of_one_deployment_that_meet(
    everywhere: NfsServer, exported: Path, tmp_path: Path, there: bool
) -> None:
    make_image(tmp_path / "other.raw", SIZE, seed=2)
    target = exported if there else exported.with_name("new.raw")
    urls = [at(everywhere, f"127.0.0.{number}", target) for number in (1, 2)]
    before = digest(exported)
    done = mpconv("deploy", tmp_path / "other.raw", *urls)
    assert digest(exported) == before
    if there or done.returncode == 1:
        assert done.returncode == 1
        assert "the same image" in done.stderr
    else:  # while the one was made the other was emptied again: that one is dropped
        assert done.returncode == 2
        assert identical(tmp_path / "other.raw", target)


def test_a_lun_by_two_portals_is_no_two_targets(portals: IscsiServer, tmp_path: Path) -> None:
    make_image(tmp_path / "source", SIZE)
    urls = lun_of(portals, TWO_PORTALS, tmp_path / "lun.img")
    before = digest(tmp_path / "lun.img")
    done = mpconv("deploy", tmp_path / "source", *urls)
    assert done.returncode == 1
    assert "--allow-same-image" in done.stderr
    assert digest(tmp_path / "lun.img") == before


def await_bytes(running: subprocess.Popen[str], target: Path) -> None:
    """More of them than making the target takes."""
    while not target.exists() or target.stat().st_blocks * 512 < MiB:
        assert running.poll() is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_source_that_changes_is_an_error(tmp_path: Path, shared: bool) -> None:
    """Unless -U was given: then it is told."""
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    make_image(source, SIZE)
    command = [sys.executable, "-m", "mpconv", "convert", "-r", "4M", "-p", *(["-U"] if shared else []), source, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        await_bytes(running, target)
        os.chmod(source, 0o600)
        with source.open("r+b") as file:
            file.write(b"changed")
        _, told = running.communicate(timeout=60)
    assert f"the source '{source}' was changed while it was copied" in told
    assert running.returncode == (0 if shared else 1)


def test_rights_of_a_source_may_change(tmp_path: Path) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    make_image(source, SIZE)
    command = [sys.executable, "-m", "mpconv", "convert", "-r", "8M", source, target]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        await_bytes(running, target)
        os.chmod(source, 0o600)
        os.link(source, tmp_path / "link")
        _, told = running.communicate(timeout=60)
    assert (running.returncode, told) == (0, "")


def test_doctor_sees_it_too(everywhere: NfsServer, exported: Path, tmp_path: Path, portals: IscsiServer) -> None:
    lun = lun_of(portals, TWO_PORTALS, tmp_path / "lun.img")
    for names in (NAMES["path and URL"](everywhere, exported), NAMES["two exports"](everywhere, exported), lun):
        before = digest(exported)
        done = mpconv("doctor", "--output", "json", "--seconds", "0.1", "--write-test", names[1], names[0])
        assert not done.stderr
        target = json.loads(done.stdout)["images"][1]
        assert [one["code"] for one in target["problems"]] == ["same", "not-tested"]
        assert digest(exported) == before


@pytest.mark.parametrize("options", [(), ("-O", "qcow2"), ("-n", "-W")], ids=" ".join)
@pytest.mark.parametrize("second", [TWO_PORTALS, "iqn.2026-11.org.mpconv:second"])
def test_one_file_behind_two_luns(portals: IscsiServer, tmp_path: Path, second: str, options: tuple[str, ...]) -> None:
    """Of one target and of two, which all have names of their own."""
    disk = tmp_path / "disk"
    one, _ = lun_of(portals, TWO_PORTALS, disk)
    if not portals.has_target(second):
        portals.add_target(second)
    other = portals.url(second, portals.add_lun(second, disk)).replace("0.0.0.0", "127.0.0.1")
    assert f"probably the same image: '{one}' and '{other}'" in refused(disk, one, other, "-f", "raw", *options)
