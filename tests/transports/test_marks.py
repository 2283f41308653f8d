"""Whoever opens a store again finds that it is the one that was looked at, or does not get it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.jobs.copy.portable import anywhere
from mpconv.model.errors import Gone, MpconvError
from mpconv.model.place import Place
from mpconv.protocol.keys import Keys, Listening
from mpconv.transports.base import LEAST_PATIENCE, Access, Opening, unlike
from mpconv.transports.file import beneath
from mpconv.transports.retry import Retry

MiB = 1 << 20


def opened(place: Place, access: Access = Access.READ, **how: object) -> dict[str, str]:
    """The marks of what lies there."""

    async def run() -> dict[str, str]:
        store = await transports.open_place(place, access, **how)
        await store.close()
        return store.marks

    return asyncio.run(run())


@pytest.fixture(params=["file", "nfs", "iscsi"])
def two(request, tmp_path) -> tuple[str, str]:
    """Two stores of one size."""
    if request.param == "iscsi":
        lun = request.getfixturevalue("lun")
        return lun(MiB).url, lun(MiB).url
    nfs = request.getfixturevalue("nfs") if request.param == "nfs" else None
    folder = tmp_path if nfs is None else nfs.export
    names = ["marked-one.raw", "marked-other.raw"]
    for name in names:
        (folder / name).write_bytes(bytes(MiB))
    return tuple(str(folder / name) if nfs is None else nfs.url(name) for name in names)


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("seconds", [None, LEAST_PATIENCE])
def test_another_one_under_the_same_name_is_not_opened(two, access, seconds):
    one, other = two
    retry = None if seconds is None else Retry(seconds)
    marks = opened(Place(url=one))
    assert marks and opened(Place(url=one, marks=marks), access, retry=retry) == marks
    with pytest.raises(Gone, match="another one has come in its place"):
        opened(Place(url=other, marks=marks), access, retry=retry)


def test_a_part_is_known_by_the_whole(two):
    one, other = two
    marks = opened(Place(url=one, offset=4096))
    assert marks == opened(Place(url=one))
    with pytest.raises(Gone):
        opened(Place(url=other, offset=4096, marks=marks))


def test_a_file_that_is_made_anew_is_another_one(tmp_path):
    """Even when the file system gives it the same inode."""
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(MiB))
    marks = opened(Place(url=str(path)))
    for _ in range(20):
        path.unlink()
        path.write_bytes(bytes(MiB))
        with pytest.raises(Gone):
            opened(Place(url=str(path), marks=marks))


def test_what_only_one_of_two_knows_proves_nothing():
    assert unlike({"its inode": "1", "its device": "2"}, {"its inode": "1", "made at": "then"}) is None
    assert unlike({}, {"its inode": "1"}) is None
    assert unlike({"its inode": "1"}, {"its inode": "2"}) == "its inode is 2, and was 1"


@pytest.mark.parametrize("born", [True, False])
def test_other_hosts_do_not_hear_of_this_host_s_numbers(tmp_path, born):
    """Where more than the inode is known, other links may lead to it there."""
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(MiB))
    marks = opened(Place(url=str(path)))
    assert {"its inode", "its device"} <= marks.keys()
    marks = {what: told for what, told in marks.items() if what != "made at"} | ({"made at": "then"} if born else {})
    listening = Listening(
        endpoint="tcp://127.0.0.1:1",
        keys=Keys(coordinator_public="", worker_public="", worker_secret=""),
        fence=1.0,
        shared_files=True,
    )
    place = anywhere(Place(url=str(path), marks=marks, beneath=str(tmp_path)), listening)
    assert "its device" not in place.marks and "its inode" in place.marks
    assert place.beneath == (None if born else str(tmp_path))


class TestBeneath:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "in" / "sub").mkdir(parents=True)
        (tmp_path / "in" / "sub" / "b").write_bytes(b"b")
        (tmp_path / "out").write_bytes(b"o")
        (tmp_path / "in" / "inner").symlink_to("sub/b")
        (tmp_path / "in" / "outer").symlink_to("../out")
        (tmp_path / "in" / "whole").symlink_to(tmp_path / "out")
        (tmp_path / "in" / "up").symlink_to("..")
        (tmp_path / "in" / "magic").symlink_to("/proc/self/cwd")
        return (tmp_path / "in").resolve()

    def test_what_stays_inside(self, folder):
        for name in ("sub/b", "inner", "../in/inner", "sub/../inner"):
            fd = beneath.open_beneath(str(folder), f"{folder}/{name}", os.O_RDONLY)
            assert os.read(fd, 2) == b"b"
            os.close(fd)

    @pytest.mark.parametrize("name", ["outer", "whole", "up/out", "../out", "sub/../../out"])
    def test_what_leads_out(self, folder, name):
        with pytest.raises(beneath.Outside, match="leads out of the directory"):
            beneath.open_beneath(str(folder), f"{folder}/{name}", os.O_RDONLY)

    @pytest.mark.parametrize("name", ["outer", "whole", "up/out", "magic", "magic/x"])
    def test_links_that_come_once_the_name_was_resolved(self, folder, name, monkeypatch):
        """Both ways: that of the kernel, and step by step."""
        monkeypatch.setattr(beneath, "rest", lambda _, path: path.removeprefix(f"{folder}/"))
        with pytest.raises(OSError, match=r"leads out|symbolic links") as caught:
            beneath.open_beneath(str(folder), f"{folder}/{name}", os.O_RDONLY)
        assert caught.value.errno in (errno.EXDEV, errno.ELOOP)

        def unknown(*_: object) -> int:
            raise OSError(errno.ENOSYS, "no such call")

        monkeypatch.setattr(beneath, "openat2", unknown)
        with pytest.raises(OSError, match=r".") as caught:
            beneath.open_beneath(str(folder), f"{folder}/{name}", os.O_RDONLY)
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)

    @pytest.mark.parametrize("why", [errno.ENOSYS, errno.EPERM])
    def test_without_the_system_call(self, folder, monkeypatch, why):
        def unknown(*_: object) -> int:
            raise OSError(why, "not here")

        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(beneath, "openat2", unknown)
        self.test_what_stays_inside(folder)
        for name in ("outer", "whole", "up/out", "../out"):
            self.test_what_leads_out(folder, name)
        with pytest.raises(FileNotFoundError):
            beneath.open_beneath(str(folder), f"{folder}/missing/file", os.O_RDONLY)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_the_directory_itself_became_a_link(self, folder):
        os.rename(folder, f"{folder}.real")
        folder.symlink_to(f"{folder}.real")
        with pytest.raises(OSError, match="lead"):
            beneath.open_beneath(str(folder), f"{folder}/sub/b", os.O_RDONLY)

    def test_in_words(self, folder):
        with pytest.raises(MpconvError) as caught:
            opened(Place(url=f"{folder}/outer", beneath=str(folder)))
        told = f"it leads out of the directory '{folder}', in which alone it is allowed"
        assert str(caught.value) == f"Could not open '{folder}/outer': {told}"


def test_a_file_on_a_server_is_emptied_only_if_it_is_the_one_that_was_looked_at(nfs):
    """Names on a server are swapped, too, between the look at what is there and the making of it."""
    for name in ("made-one.raw", "made-other.raw"):
        nfs.path(name).write_bytes(b"\1" * MiB)
    one, other = (nfs.url(name) for name in ("made-one.raw", "made-other.raw"))

    def make(url: str, replaces: dict[str, str] | None) -> tuple[int, bool]:
        async def run() -> tuple[int, bool]:
            opening = Opening(replaces=replaces)
            store = await transports.connect(url, Access.WRITE, create_size=4096, opening=opening)
            await store.close()
            return store.size, store.zero_initialised

        return asyncio.run(run())

    marks = opened(Place(url=one))
    for replaces, why in ((marks, "its"), ({}, "it is not empty")):
        with pytest.raises(MpconvError, match=f"another one has come in its place \\({why}"):
            make(other, replaces)
    assert nfs.path("made-other.raw").read_bytes() == b"\1" * MiB
    for url, name, replaces in ((one, "made-one.raw", marks), (nfs.url("made-new.raw"), "made-new.raw", {})):
        assert make(url, replaces) == (4096, True)
        assert nfs.path(name).read_bytes() == bytes(4096)
    assert make(other, None) == (4096, True)
