"""What programs are told of images: judged by qemu-img, on files, NFS and iSCSI."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

import mpconv
from tests.conftest import identical, make_image

MiB = 1 << 20


def qemu_img(*words: object) -> object:
    """What `qemu-img ... --output json` tells."""
    done = subprocess.run(["qemu-img", *map(str, words), "--output", "json"], capture_output=True, check=False)
    return json.loads(done.stdout)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """base.raw; over.qcow2 on it, with a snapshot and data of its own; plain.qcow2, a copy of base.raw."""
    make_image(tmp_path / "base.raw", 4 * MiB)
    for words in (
        ["qemu-img", "convert", "-O", "qcow2", "base.raw", "plain.qcow2"],
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "over.qcow2"],
        ["qemu-io", "-c", "write -P 7 1M 256k", "over.qcow2"],
        ["qemu-img", "snapshot", "-c", "before", "over.qcow2"],
    ):
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.mark.parametrize("name", ["base.raw", "over.qcow2", "plain.qcow2"])
def test_info_is_qemu_img_s(images, name):
    told = mpconv.blocking.info(str(images / name))
    facts = qemu_img("info", images / name)
    assert told.facts() == facts
    assert (told.format, told.size, told.disk_size) == (facts["format"], 4 * MiB, facts["actual-size"])


def test_info_of_qcow2_is_typed(images):
    told = mpconv.blocking.info(str(images / "over.qcow2"))
    assert told.qcow2 is not None
    assert (told.qcow2.backing, told.qcow2.full_backing) == ("base.raw", str(images / "base.raw"))
    assert [snapshot.name for snapshot in told.qcow2.snapshots] == ["before"]
    assert not told.qcow2.dirty
    assert mpconv.blocking.info(str(images / "over.qcow2"), image_format="raw").qcow2 is None


def test_a_chain_needs_trust(images):
    name = str(images / "over.qcow2")
    with pytest.raises(mpconv.MpconvError, match=r"asks for the backing file 'base\.raw', which is opened only with"):
        mpconv.blocking.backing_chain(name)
    with pytest.raises(mpconv.MpconvError, match="lies in none of the directories"):
        mpconv.blocking.backing_chain(name, trust=mpconv.Trust(backing=["/nonexistent"]))
    chain = mpconv.blocking.backing_chain(name, trust=mpconv.Trust(backing=[""]))
    assert [one.facts() for one in chain] == qemu_img("info", "--backing-chain", name)


def as_qemu_img(entry: mpconv.MapEntry) -> dict[str, object]:
    facts = {name: getattr(entry, name) for name in ("start", "length", "depth", "present", "zero", "data")}
    return facts if entry.offset is None else {**facts, "offset": entry.offset}


@pytest.mark.parametrize("name", ["base.raw", "over.qcow2", "plain.qcow2"])
def test_map_is_qemu_img_s(images, name):
    trust = mpconv.Trust(backing=[str(images)])
    entries = mpconv.blocking.map(str(images / name), trust=trust)
    assert [as_qemu_img(entry) for entry in entries] == qemu_img("map", images / name)
    part = mpconv.blocking.map(str(images / name), MiB, 512, trust=trust)
    assert [as_qemu_img(entry) for entry in part] == qemu_img("map", "-s", MiB, "-l", 512, images / name)


def test_map_refuses_what_is_no_range(images):
    for start, length in ((-1, None), (0, -1)):
        with pytest.raises(mpconv.MpconvError, match="at least 0"):
            mpconv.blocking.map(str(images / "base.raw"), start, length)
    with pytest.raises(mpconv.MpconvError, match="asks for the backing file"):
        mpconv.blocking.map(str(images / "over.qcow2"))


def test_measure_is_qemu_img_s(images):
    raw, over = str(images / "base.raw"), str(images / "over.qcow2")
    trust = mpconv.Trust(backing=[""])
    small = mpconv.Qcow2Options(cluster_size=4096)
    assert mpconv.blocking.measure(raw).facts() == qemu_img("measure", raw)
    assert mpconv.blocking.measure(raw, "qcow2").facts() == qemu_img("measure", "-O", "qcow2", raw)
    options = ["-O", "qcow2", "-o", "cluster_size=4k"]
    assert mpconv.blocking.measure(raw, "qcow2", small).facts() == qemu_img("measure", *options, raw)
    assert mpconv.blocking.measure(over, "qcow2", trust=trust).facts() == qemu_img("measure", "-O", "qcow2", over)
    of_snapshot = mpconv.blocking.measure(over, "qcow2", trust=trust, snapshot="before")
    assert of_snapshot.facts() == qemu_img("measure", "-O", "qcow2", "-l", "before", over)
    assert mpconv.blocking.measure(1 << 40).required == 1 << 40
    assert mpconv.blocking.measure(1 << 40, "qcow2", small).facts() == qemu_img("measure", *options, "--size", "1T")


@pytest.mark.parametrize(
    ("image", "target_format", "qcow2", "why"),
    [
        (-1, "raw", None, "at least 0 bytes"),
        (MiB, "vmdk", None, "only raw and qcow2"),
        (MiB, "qcow2", mpconv.Qcow2Options(preallocation="some"), "preallocation is one of"),
        (MiB, "qcow2", mpconv.Qcow2Options(cluster_size=1000), "Cluster size must be a power of two"),
        (1 << 60, "qcow2", mpconv.Qcow2Options(cluster_size=512), "The image size is too large"),
    ],
)
def test_measure_refuses(image, target_format, qcow2, why):
    with pytest.raises(mpconv.MpconvError, match=why):
        mpconv.blocking.measure(image, target_format, qcow2)


def set_refcount(path: Path, cluster: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(0x20000 + 2 * cluster)
        file.write(value.to_bytes(2, "big"))


def test_check_finds_what_qemu_img_finds(images):
    whole, corrupt = images / "plain.qcow2", images / "corrupt.qcow2"
    shutil.copy(whole, corrupt)
    set_refcount(corrupt, 5, 0)
    for image in (whole, corrupt):
        found: list[str] = []
        report = mpconv.blocking.check(str(image), on_finding=found.append)
        facts = qemu_img("check", image)
        assert report.corruptions == facts.get("corruptions", 0)
        assert report.leaks == facts.get("leaks", 0)
        assert (report.end, report.allocated) == (facts["image-end-offset"], facts["allocated-clusters"])
        assert report.clean == (image == whole)
        assert len(found) == report.corruptions
    assert "ERROR cluster 5 refcount=0 reference=1" in found


def test_check_says_what_it_cannot_check(images):
    with pytest.raises(mpconv.MpconvError, match="does not support checks") as caught:
        mpconv.blocking.check(str(images / "base.raw"))
    assert caught.value.exit_code == 63
    damaged = images / "damaged.qcow2"
    damaged.write_bytes((images / "plain.qcow2").read_bytes()[:100])
    with pytest.raises(mpconv.MpconvError, match=r"damaged\.qcow2") as caught:
        mpconv.blocking.check(str(damaged), image_format="qcow2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ["info", "backing_chain", "map", "measure", "check"])
def test_an_image_that_is_missing(tmp_path, function):
    with pytest.raises(mpconv.MpconvError) as caught:
        getattr(mpconv.blocking, function)(str(tmp_path / "absent"))
    assert str(caught.value) == f"Could not open '{tmp_path / 'absent'}': No such file or directory"


def test_many_at_once_over_nfs_and_iscsi(images, nfs, lun):
    """In one event loop, on a thread that is not the main one."""
    shutil.copy(images / "plain.qcow2", nfs.export / "api-plain.qcow2")
    target = lun(4 * MiB)
    subprocess.run(["cp", images / "base.raw", target.backing], check=True)
    url = nfs.url("api-plain.qcow2")

    async def ask() -> list[object]:
        asked = (mpconv.info(url), mpconv.check(url), mpconv.map(url), mpconv.info(target.url), mpconv.measure(url))
        return list(await asyncio.gather(*asked))

    results: list[list[object]] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(ask())))
    thread.start()
    thread.join(60)
    [[info, report, entries, disk, measured]] = results
    local = images / "plain.qcow2"
    assert (info.format, info.size, info.name) == ("qcow2", 4 * MiB, url)
    assert report == mpconv.blocking.check(str(local))
    assert [as_qemu_img(entry) for entry in entries] == qemu_img("map", local)
    assert (disk.format, disk.size) == ("raw", 4 * MiB)
    assert measured.required == 4 * MiB
    copied = mpconv.blocking.convert(mpconv.Place(url=url, format="qcow2"), str(images / "back.raw"))
    assert copied.size == 4 * MiB and identical(images / "base.raw", images / "back.raw")


def test_an_examination_names_what_is_in_the_way(images, nfs):
    heard: list[mpconv.Examination] = []
    urls = [str(images / "base.raw"), nfs.url("nowhere/a.raw")]
    found = mpconv.blocking.examine(urls, seconds=0.1, on_examined=heard.append)
    assert found == heard
    assert [(one.ok, one.role) for one in found] == [(True, "source"), (False, "target")]
    assert (found[0].size, found[0].format) == (4 * MiB, "raw")
    assert found[1].problems and all(problem.fix for problem in found[1].problems)
    for urls in ([], ["null:"]):
        with pytest.raises(mpconv.MpconvError):
            mpconv.blocking.examine(urls)


def test_no_error_tells_a_password(images, lun):
    """Neither one that the URL has, nor one that the image has in its backing file's name."""
    named = "iscsi://bob%hidden-secret-2@127.0.0.1:1/iqn.x/0"
    create = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", named, "-F", "raw", "named.qcow2", "1M"]
    subprocess.run(create, cwd=images, check=True)
    disk = lun(MiB)
    subprocess.run(["dd", f"if={images / 'named.qcow2'}", f"of={disk.backing}", "conv=notrunc"], check=True)
    url = disk.url.replace("//", "//alice%right-secret-1@")
    place, qcow2 = (mpconv.Place(url=url, format=fmt) for fmt in ("vmdk", "qcow2"))
    asked = [
        lambda: mpconv.blocking.map(qcow2),
        lambda: mpconv.blocking.map(qcow2, trust=mpconv.Trust(backing=[""])),
        lambda: mpconv.blocking.backing_chain(url),
        lambda: mpconv.blocking.measure(qcow2),
        lambda: mpconv.blocking.info(place),
        lambda: mpconv.blocking.check(place),
        lambda: mpconv.blocking.convert(qcow2, "null:"),
    ]
    for ask in asked:
        with pytest.raises(mpconv.MpconvError, match=r"iscsi://alice@.*(asks for the backing file|vmdk)") as caught:
            ask()
        assert "secret" not in str(caught.value)
    assert "secret" not in str(mpconv.blocking.info(url).facts())


def test_it_can_be_cancelled(images):
    """Nothing of it stays open."""
    before = set(os.listdir("/proc/self/fd"))

    async def cancelled() -> None:
        asked = asyncio.ensure_future(mpconv.check(str(images / "plain.qcow2")))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(cancelled())
    assert set(os.listdir("/proc/self/fd")) == before
