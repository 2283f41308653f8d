"""Links that somebody swaps while an image is looked at and opened again: never another file's bytes, and none lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import mpconv

MiB = 1 << 20
SIZE = 2 * MiB
MINE, OTHERS = b"\x11", b"\x66"

_HOOK = """
import importlib, os, sys
owner = importlib.import_module(sys.argv[1])
*way, last = sys.argv[2].split(".")
for name in way:
    owner = getattr(owner, name)
real = getattr(owner, last)
moment, new, name = sys.argv[3:6]
def swap():
    if os.path.lexists(new):
        os.replace(new, name)
def before(*args, **kwargs):
    swap()
    return real(*args, **kwargs)
def after(*args, **kwargs):
    found = real(*args, **kwargs)
    swap()
    return found
setattr(owner, last, before if moment == "before" else after)
del sys.argv[1:6]
from mpconv.cli import run
run()
"""
"""A name is swapped at a certain moment: another one, prepared, is put in its place."""

JUDGED = ("mpconv.formats.trust", "backing_place", "after")
DATA_JUDGED = ("mpconv.formats.trust", "data_place", "after")
WORKER = ("mpconv.workers.worker", "Worker._connected", "before")
MADE = ("mpconv.transports.file.store", "_opened", "before")
PROBED = ("mpconv.jobs.copy.convert", "open_target", "before")
VERIFIED = ("mpconv.jobs.verify", "verify", "before")
LOOKED = ("mpconv.transports.file.store", "_descriptor", "before")


class Swapped:
    """`moment`: when `new` takes the place of `name`."""

    def __init__(self, moment: tuple[str, str, str], name: Path, new: Path) -> None:
        self._words = [sys.executable, "-c", _HOOK, *moment, str(new), str(name)]

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._words, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
        )


def refused(ran: subprocess.CompletedProcess[str], words: str, code: int = 1) -> None:
    assert ran.returncode == code, ran.stderr
    assert words in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr


ANOTHER = "another one has come in its place"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A directory in which somebody else swaps names, and one outside with what is nobody's business."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("out").mkdir()
    Path("out/secret.raw").write_bytes(OTHERS * SIZE)
    Path("in/b.raw").write_bytes(MINE * SIZE)
    Path("in/other.raw").write_bytes(OTHERS * SIZE)
    Path("a.raw").write_bytes(MINE * SIZE)
    qemu_img("create", "-f", "qcow2", "-b", "b.raw", "-F", "raw", "in/ov.qcow2")
    return tmp_path


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def link(target: Path | str, name: str = "new") -> Path:
    made = Path(name)
    made.symlink_to(target)
    return made.absolute()


@pytest.mark.parametrize("command", [("convert", "ov", "o.raw"), ("map", "ov"), ("compare", "ov", "a.raw")])
@pytest.mark.parametrize("way", ["out/secret.raw", "in/sub/../../out/secret.raw"])
def test_a_backing_file_that_leads_out_once_it_was_judged(lab, command, way):
    Path("in/sub").mkdir()
    swapped = Swapped(JUDGED, lab / "in/b.raw", link(lab / way))
    verb, *rest = (word.replace("ov", "in/ov.qcow2") if word == "ov" else word for word in command)
    refused(swapped(verb, "--allow-backing", *rest), "leads out of the directory", 2 if verb == "compare" else 1)
    assert not Path("o.raw").exists()


@pytest.mark.parametrize("where", ["--allow-backing", "--allow-backing=in"])
def test_a_directory_on_the_way_that_leads_out(lab, where):
    Path("in/sub").mkdir()
    os.rename("in/b.raw", "in/sub/secret.raw")
    qemu_img("create", "-f", "qcow2", "-b", "sub/secret.raw", "-F", "raw", "in/ov.qcow2")
    os.rename("in/sub", "in/real")
    link("real", "in/sub")
    swapped = Swapped(JUDGED, lab / "in/sub", link(lab / "out"))
    refused(swapped("convert", where, "in/ov.qcow2", "o.raw"), "leads out of the directory")


def test_the_image_s_own_directory_is_swapped(lab):
    """What it calls its own is then another one: nothing in it is opened."""
    os.rename("out/secret.raw", "out/b.raw")
    os.rename("in", "real")
    link("real", "in")
    read = ("mpconv.formats.qcow2.image", "read_metadata", "before")
    swapped = Swapped(read, lab / "in", link(lab / "out"))
    refused(swapped("convert", "--allow-backing", "in/ov.qcow2", "o.raw"), "its directory is another one by now")


def test_links_that_stay_inside_are_followed(lab):
    os.rename("in/b.raw", "in/real.raw")
    link("real.raw", "in/b.raw")
    link("in", "there")
    for where in ("--allow-backing", "--allow-backing=there", f"--allow-backing={lab}"):
        ran = mpconv("convert", where, "there/ov.qcow2", "o.raw")
        assert ran.returncode == 0 and Path("o.raw").read_bytes() == MINE * SIZE, ran.stderr


@pytest.mark.parametrize("new", ["out/secret.raw", "in/other.raw"])
@pytest.mark.parametrize("command", [("convert", "ov", "o.raw"), ("compare", "ov", "a.raw"), ("checksum", "ov")])
def test_a_backing_file_that_is_swapped_before_a_worker_opens_it(lab, new, command):
    swapped = Swapped(WORKER, lab / "in/b.raw", link(lab / new))
    verb, *rest = ("in/ov.qcow2" if word == "ov" else word for word in command)
    words = "leads out of the directory" if new.startswith("out") else ANOTHER
    refused(swapped(verb, "--allow-backing", *rest), words, 2 if verb == "compare" else 1)
    if verb == "convert":
        assert not Path("o.raw").exists()


@pytest.mark.parametrize("command", [("convert", "src", "o.raw"), ("compare", "src", "a.raw"), ("checksum", "src")])
@pytest.mark.parametrize("link_itself", [True, False])
def test_a_source_that_is_swapped_before_a_worker_opens_it(lab, command, link_itself):
    src = link("a.raw", "src") if link_itself else Path("src")
    if not link_itself:
        src.write_bytes(MINE * SIZE)
    new = link("out/secret.raw") if link_itself else Path("out/secret.raw").absolute()
    verb, *rest = command
    ran = Swapped(WORKER, src.absolute(), new)(verb, "-f", "raw", *rest)
    refused(ran, ANOTHER, 2 if verb == "compare" else 1)


def test_a_data_file(lab):
    made = ["qemu-img", "convert", "-O", "qcow2", "-o", "data_file=d.raw", "../a.raw", "df.qcow2"]
    subprocess.run(made, check=True, cwd="in")
    for number, (moment, words) in enumerate(((DATA_JUDGED, "leads out"), (WORKER, "leads out"))):
        Path("in/d.raw").unlink(missing_ok=True)
        Path("in/d.raw").write_bytes(MINE * SIZE)
        swapped = Swapped(moment, lab / "in/d.raw", link(lab / "out/secret.raw", f"new{number}"))
        refused(swapped("convert", "--allow-data-file", "in/df.qcow2", "o.raw"), words)
    for number, moment in enumerate((DATA_JUDGED, WORKER)):
        Path("in/d.raw").unlink(missing_ok=True)
        Path("in/d.raw").write_bytes(MINE * SIZE)
        swapped = Swapped(moment, lab / "in/d.raw", link(lab / "out/secret.raw", f"other{number}"))
        words = "-n", "-f", "raw", "-O", "qcow2", "--allow-data-file=in", "a.raw", "in/df.qcow2"
        refused(swapped("convert", *words), "leads out")
    assert Path("out/secret.raw").read_bytes() == OTHERS * SIZE


@pytest.mark.parametrize("options", [(), ("-n",), ("-W",), ("-O", "qcow2")])
def test_a_target_that_is_swapped_before_a_worker_opens_it(lab, options):
    Path("t").write_bytes(bytes(SIZE))
    swapped = Swapped(WORKER, lab / "t", link(lab / "out/secret.raw"))
    words = ("-O", "raw") if "qcow2" not in options else ()
    refused(swapped("convert", "-f", "raw", *words, *options, "a.raw", "t"), ANOTHER)
    assert Path("out/secret.raw").read_bytes() == OTHERS * SIZE


def test_one_of_several_targets(lab):
    Path("t").write_bytes(bytes(SIZE))
    ran = Swapped(WORKER, lab / "t", link(lab / "out/secret.raw"))("deploy", "-f", "raw", "a.raw", "t", "u")
    assert ran.returncode != 0 and ANOTHER in ran.stderr + ran.stdout
    assert Path("out/secret.raw").read_bytes() == OTHERS * SIZE
    assert Path("u").read_bytes() == MINE * SIZE


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("options", [(), ("-O", "qcow2")])
def test_a_target_that_becomes_the_source_just_before_it_is_emptied(lab, there, options):
    """Between the look at what is there and the making of it."""
    made = ("mpconv.transports", "connect", "before")
    if there:
        Path("t").write_bytes(bytes(SIZE))
    hooked = _HOOK.replace(
        "    swap()\n    return real", "    if kwargs.get('create_size') is not None: swap()\n    return real"
    )
    words = [sys.executable, "-c", hooked, *made, str(link(lab / "a.raw")), str(lab / "t")]
    ran = subprocess.run(
        [*words, "convert", "-U", "-f", "raw", *options, "a.raw", "t"], capture_output=True, text=True, check=False
    )
    refused(ran, "same image")
    assert Path("a.raw").read_bytes() == MINE * SIZE


def test_a_target_is_made_through_a_link_as_qemu_img_does(lab):
    link("made.raw", "t")
    assert mpconv("convert", "-f", "raw", "a.raw", "t").returncode == 0
    assert Path("t").is_symlink() and Path("made.raw").read_bytes() == MINE * SIZE


def test_a_target_that_is_swapped_once_it_was_probed(lab):
    """A qcow2 image would be written as if it were raw."""
    Path("t").write_bytes(bytes(SIZE))
    qemu_img("create", "-f", "qcow2", "victim.qcow2", "2M")
    victim = Path("victim.qcow2").read_bytes()
    swapped = Swapped(PROBED, lab / "t", link("victim.qcow2"))
    refused(swapped("convert", "-n", "--target-image-opts", "-f", "raw", "a.raw", "file.filename=t"), ANOTHER)
    assert Path("victim.qcow2").read_bytes() == victim


def test_a_target_that_is_swapped_before_it_is_read_back(lab):
    Path("t").write_bytes(bytes(SIZE))
    ran = Swapped(VERIFIED, lab / "t", link(lab / "a.raw"))("convert", "-f", "raw", "--verify", "a.raw", "t")
    refused(ran, ANOTHER)
    assert "not verified" in ran.stderr


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_fifo_in_place_of_a_file_stops_nobody(lab, side):
    Path("t").write_bytes(MINE * SIZE)
    os.mkfifo("fifo")
    names = ("t", "o.raw") if side == "source" else ("a.raw", "t")
    ran = Swapped(LOOKED, lab / "t", lab / "fifo")("convert", "-f", "raw", *names)
    if side == "source":
        refused(ran, "neither a regular file nor a block device")
    else:
        assert ran.returncode in (0, 1) and ran.stderr.count("\n") == ran.returncode, ran.stderr


def test_a_resumed_copy_opens_beneath_too(lab):
    """The journal keeps in which directory the backing file may lie."""
    slow = [sys.executable, "-m", "mpconv", "convert", "--journal", "j", "-r", "100k", "--allow-backing"]
    with subprocess.Popen([*slow, "--progress=json", "in/ov.qcow2", "o.raw"], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        while not mpconv("status", "j").stdout:
            pass
        running.kill()
    os.replace(link(lab / "out/secret.raw"), "in/b.raw")
    ran = mpconv("resume", "j")
    refused(ran, "leads out of the directory")


_SWAPPER = """
import os, sys
file, out, name, spare = sys.argv[1:]
told = False
while True:
    os.symlink(out, spare)
    os.replace(spare, name)
    os.link(file, spare)
    os.replace(spare, name)
    if not told:
        told = True
        print(flush=True)
"""


@contextmanager
def swapping(file: Path, out: Path, name: Path) -> Iterator[None]:
    """Somebody gives `name` to the file and to a link to what lies outside, in turn, as fast as he can."""
    words = [sys.executable, "-c", _SWAPPER, str(file), str(out), str(name), f"{name}.spare"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # both names were there
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


def test_a_race(lab):
    """Whoever wins: right bytes, or one line. With -U: each swap changes the file's links, and so its change time."""
    os.rename("in/b.raw", "in/mine.raw")
    with swapping(lab / "in/mine.raw", lab / "out/secret.raw", lab / "in/b.raw"):
        for _ in range(8):
            ran = mpconv("convert", "-U", "--allow-backing", "in/ov.qcow2", "o.raw")
            if ran.returncode == 0:
                assert Path("o.raw").read_bytes() == MINE * SIZE
            else:
                assert ran.returncode == 1 and ran.stderr.count("\n") == 1, ran.stderr
                assert not Path("o.raw").exists() or OTHERS not in Path("o.raw").read_bytes()


def test_over_nfs(nfs, tmp_path):
    """Links on the server: none leads out of the directory, whoever follows it."""
    folder = nfs.path("swapped")
    (folder / "in" / "sub").mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "out" / "b.raw").write_bytes(OTHERS * SIZE)
    (folder / "in" / "b.raw").write_bytes(MINE * SIZE)
    (folder / "in" / "sub" / "b.raw").write_bytes(MINE * SIZE)

    def overlay(name: str, backing: str) -> str:
        qemu_img("create", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", folder / "in" / name, SIZE)
        return nfs.url(f"swapped/in/{name}")

    def converted(url: str) -> subprocess.CompletedProcess[str]:
        return mpconv("convert", "--allow-backing", url, tmp_path / "o.raw")

    for url in (overlay("ov.qcow2", "b.raw"), overlay("ov2.qcow2", "sub/b.raw")):
        assert converted(url).returncode == 0
        assert (tmp_path / "o.raw").read_bytes() == MINE * SIZE
    inside = overlay("ov3.qcow2", "inner")
    (folder / "in" / "inner").symlink_to("sub/b.raw")
    assert converted(inside).returncode == 0
    for number, (name, target) in enumerate(
        (
            ("x.raw", "../out/b.raw"),
            ("x.raw", folder / "out" / "b.raw"),
            ("dir/b.raw", "../out"),
            ("dir/b.raw", folder / "out"),
        )
    ):
        (folder / "in" / name.partition("/")[0]).unlink(missing_ok=True)
        (folder / "in" / name.partition("/")[0]).symlink_to(target)
        ran = converted(overlay(f"out{number}.qcow2", name))
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1, (name, target, ran.stderr)
