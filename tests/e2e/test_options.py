"""`mpconv convert`'s options between real stores; qemu-img is asked for the same and judges the result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import identical, make_image, mpconv
from tests.support.allocation import allocation

MiB = 1 << 20


def done(*arguments: object, **options: object) -> str:
    """Run `mpconv convert`, which must succeed; what it printed."""
    ran = mpconv("convert", *arguments, **options)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran.stdout


def qemu(*arguments: object) -> None:
    subprocess.run(["qemu-img", "convert", *map(str, arguments)], check=True)


@pytest.mark.parametrize("order", [(), ("-W",)])
def test_several_sources_are_padded_one_by_one(tmp_path, nfs, lun, order):
    parts = []
    for number, size in enumerate([1000, 3 * MiB + 512, 1, 0, 2 * MiB]):
        path = tmp_path / f"{number}.raw"
        make_image(path, size, seed=number)
        parts.append(path)
    qemu(*parts, tmp_path / "expected.raw")

    def told_of_the_empty_one(*words: object) -> None:
        ran = mpconv("convert", *words)
        assert ran.returncode == 0 and ran.stderr.count("\n") == 1 and "3.raw' is empty" in ran.stderr, ran

    told_of_the_empty_one(*order, *parts, tmp_path / "found.raw")
    assert (tmp_path / "found.raw").read_bytes() == (tmp_path / "expected.raw").read_bytes()
    assert allocation(tmp_path / "found.raw") == allocation(tmp_path / "expected.raw")
    shutil.copy(parts[1], nfs.path(f"part{len(order)}.raw"))
    target = lun(8 * MiB, old_data=True)
    told_of_the_empty_one(*order, "-n", parts[0], nfs.url(f"part{len(order)}.raw"), *parts[2:], target.url)
    size = (tmp_path / "expected.raw").stat().st_size
    assert target.backing.read_bytes()[:size] == (tmp_path / "expected.raw").read_bytes()


@pytest.mark.parametrize("mode", ["none", "off", "writeback", "writethrough", "directsync", "unsafe"])
def test_cache_modes(tmp_path, mode):
    make_image(tmp_path / "a.raw", 5 * MiB + 700)
    done("-t", mode, "-T", mode, tmp_path / "a.raw", tmp_path / "b.raw")
    qemu("-t", mode, "-T", mode, tmp_path / "a.raw", tmp_path / "c.raw")
    assert (tmp_path / "b.raw").read_bytes() == (tmp_path / "c.raw").read_bytes()


def test_write_through_on_servers(tmp_path, nfs, lun):
    make_image(tmp_path / "a.raw", 5 * MiB)
    target = lun(5 * MiB)
    done("-t", "writethrough", tmp_path / "a.raw", target.url)
    done("-t", "directsync", target.url, nfs.url("through.raw"))
    assert identical(tmp_path / "a.raw", nfs.path("through.raw"))


@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
@pytest.mark.parametrize("sparse", [(), ("-S", "0")])
def test_preallocation(tmp_path, preallocation, sparse):
    make_image(tmp_path / "a.raw", 5 * MiB)
    for program, name in ((done, "b.raw"), (qemu, "c.raw")):
        program(*sparse, "-o", f"preallocation={preallocation}", tmp_path / "a.raw", tmp_path / name)
    assert allocation(tmp_path / "b.raw") == allocation(tmp_path / "c.raw")
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


@pytest.mark.parametrize("offload", [(), ("-C",)])
def test_offloaded_or_not_the_bytes_are_the_same(tmp_path, offload, lun):
    make_image(tmp_path / "a.raw", 9 * MiB + 100)
    for program, name in ((done, "b.raw"), (qemu, "c.raw")):
        program(*offload, tmp_path / "a.raw", tmp_path / name)
    assert (tmp_path / "b.raw").read_bytes() == (tmp_path / "c.raw").read_bytes()
    assert allocation(tmp_path / "b.raw") == allocation(tmp_path / "c.raw")
    target = lun(10 * MiB, old_data=True)
    done(*offload, tmp_path / "b.raw", target.url)
    assert target.backing.read_bytes()[: (tmp_path / "b.raw").stat().st_size] == (tmp_path / "b.raw").read_bytes()


def test_zeros_are_not_given_back_without_detection(tmp_path):
    make_image(tmp_path / "a.raw", 5 * MiB)
    done("-S", "0", tmp_path / "a.raw", tmp_path / "b.raw")
    assert allocation(tmp_path / "b.raw") == [(0, 5 * MiB, True)]


def test_a_target_that_is_said_to_be_zero_and_is_not_is_found_by_verify(tmp_path):
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(4 * MiB)
        file.seek(MiB)
        file.write(b"\x5a" * MiB)
    old = bytearray(4 * MiB)
    (tmp_path / "b.raw").write_bytes(old)
    done("-n", "--target-is-zero", "--verify", tmp_path / "a.raw", tmp_path / "b.raw")
    old[3 * MiB + 700] = 1
    (tmp_path / "b.raw").write_bytes(old)
    found = mpconv("convert", "-n", "--target-is-zero", "--verify", tmp_path / "a.raw", tmp_path / "b.raw")
    assert found.returncode == 1
    assert "the target is not equal to the source" in found.stderr


def test_without_detection_holes_are_written_too_whatever_the_target_is_said_to_hold(tmp_path):
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(MiB)
    (tmp_path / "b.raw").write_bytes(b"\xa5" * MiB)
    done("-S", "0", "-n", "--target-is-zero", tmp_path / "a.raw", tmp_path / "b.raw")
    assert (tmp_path / "b.raw").read_bytes() == bytes(MiB)
    assert allocation(tmp_path / "b.raw") == [(0, MiB, True)]


def test_a_target_that_is_said_to_be_zero_keeps_what_it_has(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(MiB) + b"\1" * MiB)
    for program, name in ((done, "b.raw"), (qemu, "c.raw")):
        (tmp_path / name).write_bytes(b"\xa5" * (2 * MiB))
        program("-n", "--target-is-zero", tmp_path / "a.raw", tmp_path / name)
    assert (tmp_path / "b.raw").read_bytes() == (tmp_path / "c.raw").read_bytes()


def test_image_opts(tmp_path, nfs, lun):
    make_image(tmp_path / "a,b.raw", 5 * MiB)
    target = lun(6 * MiB)
    portal, iqn, number = target.url.removeprefix("iscsi://").split("/")
    source = f"driver=raw,offset=1M,size=2M,file.driver=file,file.filename={tmp_path}/a,,b.raw"
    onto = f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={iqn},file.lun={number}"
    done("-n", "--image-opts", "--target-image-opts", source, onto)
    assert target.backing.read_bytes()[: 2 * MiB] == (tmp_path / "a,b.raw").read_bytes()[MiB : 3 * MiB]


def test_a_part_of_a_target_is_written_and_nothing_beside_it(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    (tmp_path / "b.raw").write_bytes(b"\xa5" * (4 * MiB))
    onto = f"driver=raw,offset=1M,size=2M,file.filename={tmp_path}/b.raw"
    done("-n", "--target-image-opts", tmp_path / "a.raw", onto)
    old = b"\xa5" * MiB
    assert (tmp_path / "b.raw").read_bytes() == old + (tmp_path / "a.raw").read_bytes() + old + old


def test_the_rate_holds_for_all_workers_together(tmp_path):
    """The one test that looks at a clock: a lower bound, which no slow machine can miss."""
    (tmp_path / "a.raw").write_bytes(b"\1" * (6 * MiB))
    started = time.monotonic()
    done("-W", "-r", "4M", "--workers", 3, tmp_path / "a.raw", tmp_path / "b.raw")
    assert time.monotonic() - started >= 1.4
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


class TestSalvage:
    """A LUN whose backing file was cut short behind the target's back cannot be read there."""

    @pytest.fixture
    def broken(self, lun):
        store = lun(8 * MiB, thin=False)
        store.backing.write_bytes(b"\1" * (8 * MiB))
        os.truncate(store.backing, 5 * MiB + 3 * 4096)
        return store

    def test_without_it_the_copy_fails(self, broken, tmp_path):
        ran = mpconv("convert", broken.url, tmp_path / "b.raw")
        assert ran.returncode == 1
        assert re.search(r"error while reading at byte \d+ of", ran.stderr)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_what_cannot_be_read_becomes_zeros_and_is_listed(self, broken, tmp_path, workers):
        ran = mpconv("convert", "--salvage", "--workers", workers, "--progress=json", broken.url, tmp_path / "b.raw")
        lost, good = 3 * MiB - 3 * 4096, 5 * MiB + 3 * 4096
        assert ran.returncode == 0, ran.stderr
        assert (tmp_path / "b.raw").read_bytes() == b"\1" * good + bytes(lost)
        assert f"lost bytes {good} to {8 * MiB - 1} ({lost})" in ran.stderr
        assert ran.stderr.count("\n") == 2
        told = [json.loads(line) for line in ran.stdout.splitlines()]
        [ranges] = [line["lost"] for line in told if "lost" in line]
        assert [(place["start"], place["length"]) for place in ranges] == [(good, lost)]

    def test_quietly(self, broken, tmp_path):
        ran = mpconv("convert", "-q", "--salvage", broken.url, tmp_path / "b.raw")
        assert (ran.returncode, ran.stderr) == (0, "")


def test_progress_is_asked_for_by_a_signal(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"\1" * (8 * MiB))
    command = [sys.executable, "-m", "mpconv", "convert", "-r", "2M", "--progress=json", "a.raw", "b.raw"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        while json.loads(running.stdout.readline())["done"] == 0:
            pass
        running.send_signal(signal.SIGUSR1)
        assert re.fullmatch(r"    \(\d+\.\d\d/100%\)\n", running.stderr.readline())
        running.stdout.read()
    assert running.returncode == 0
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_how_zeros_are_made_is_said_when_asked_for(tmp_path, lun):
    (tmp_path / "a.raw").write_bytes(bytes(4 * MiB))
    ran = mpconv("convert", "-v", tmp_path / "a.raw", lun(4 * MiB, old_data=True).url)
    assert ran.returncode == 0
    assert re.search(r"^mpconv: zeros on 'iscsi://.*': .*WRITE SAME", ran.stderr, re.MULTILINE)


def test_an_all_zero_image_frees_a_lun_full_of_old_data(tmp_path, lun):
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(64 * MiB)
    target = lun(64 * MiB, old_data=True)
    done(tmp_path / "a.raw", target.url)
    assert not any(target.backing.read_bytes())
    assert target.backing.stat().st_blocks * 512 < MiB


def test_eight_tebibytes_of_nothing_and_three_extents(tmp_path):
    """Status, not bytes: it would take days otherwise, and the suite's time limit would tell."""
    size = 8 << 40
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(size)
        for at in (0, size // 3 // 4096 * 4096, size - 4096):
            file.seek(at)
            file.write(b"\1" * 4096)
    done(tmp_path / "a.raw", tmp_path / "b.raw")
    assert (tmp_path / "b.raw").stat().st_size == size
    assert allocation(tmp_path / "a.raw") == allocation(tmp_path / "b.raw")
    done("-n", tmp_path / "a.raw", tmp_path / "b.raw")
    assert mpconv("compare", tmp_path / "a.raw", tmp_path / "b.raw").returncode == 0


class TestInUse:
    """QEMU's locks on local images: ours are seen by qemu-img, and its by us."""

    @pytest.fixture
    def slow(self, tmp_path):
        """A copy of a.raw to b.raw by qemu-img that takes long: both are in use."""
        (tmp_path / "a.raw").write_bytes(b"\1" * (16 * MiB))
        command = ["qemu-img", "convert", "-r", "1M", "a.raw", "b.raw"]
        with subprocess.Popen(command, cwd=tmp_path) as running:
            while not (tmp_path / "b.raw").exists() or not (tmp_path / "b.raw").stat().st_blocks:
                assert running.poll() is None
            yield tmp_path
            running.kill()

    def test_a_target_in_use_is_refused_and_not_touched(self, slow):
        make_image(slow / "c.raw", MiB)
        for options in ((), ("-n",), ("-U",)):
            ran = mpconv("convert", *options, slow / "c.raw", slow / "a.raw")
            assert ran.returncode == 1 and 'Failed to get "write" lock' in ran.stderr, ran.stderr
            assert ran.stderr.count("\n") == 1
        assert (slow / "a.raw").read_bytes() == b"\1" * (16 * MiB)

    def test_a_source_that_is_written_to_is_refused_unless_shared(self, slow):
        ran = mpconv("convert", slow / "b.raw", slow / "c.raw")
        assert ran.returncode == 1 and 'Failed to get shared "write" lock' in ran.stderr
        assert not (slow / "c.raw").exists()
        done("-U", slow / "b.raw", slow / "c.raw")

    def test_qemu_img_sees_ours(self, tmp_path):
        (tmp_path / "a.raw").write_bytes(b"\1" * (16 * MiB))
        command = [sys.executable, "-m", "mpconv", "convert", "-r", "1M", "--progress=json", "a.raw", "b.raw"]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            while json.loads(running.stdout.readline())["done"] == 0:
                pass
            (tmp_path / "d.raw").write_bytes(b"\2" * MiB)
            for refused in (["b.raw", "c.raw"], ["d.raw", "a.raw"], ["-n", "d.raw", "a.raw"]):
                ran = subprocess.run(
                    ["qemu-img", "convert", *refused], cwd=tmp_path, capture_output=True, text=True, check=False
                )
                assert ran.returncode == 1 and "lock" in ran.stderr, refused
            running.terminate()
            running.stdout.read()
        assert (
            subprocess.run(["qemu-img", "info", "a.raw"], cwd=tmp_path, capture_output=True, check=False).returncode
            == 0
        )


def test_an_image_of_another_format_is_not_taken_for_raw(tmp_path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", tmp_path / "a.vdi", "1M"], check=True)
    ran = mpconv("convert", tmp_path / "a.vdi", tmp_path / "b.raw")
    assert ran.returncode == 1 and "looks like vdi" in ran.stderr and "-f raw" in ran.stderr
    assert not (tmp_path / "b.raw").exists()
    done("-f", "raw", tmp_path / "a.vdi", tmp_path / "b.raw")
    assert Path(tmp_path / "b.raw").read_bytes()[:4] == b"<<< "


@pytest.mark.parametrize("options", [(), ("-S", "0")])
def test_workers_do_not_share_a_block_of_the_lun(tmp_path, lun, options):
    """Each would read it, and put back the other's old bytes: extents that end inside blocks of 4096 bytes."""
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(48 * MiB + 4096)
        for at in range(0, 48 * MiB, 24 * 1024):
            file.seek(at)
            file.write(os.urandom(12 * 1024))
    source = f"driver=raw,offset=512,size=48M,file.filename={tmp_path}/a.raw"
    target = lun(49 * MiB, block_size=4096, old_data=True)
    done("-n", "-W", "--workers", 4, *options, "--image-opts", source, target.url)
    found = target.backing.read_bytes()
    assert found[: 48 * MiB] == (tmp_path / "a.raw").read_bytes()[512 : 48 * MiB + 512]
    assert found[48 * MiB :] == b"\xa5" * MiB


def test_several_sources_that_meet_inside_a_block_of_the_lun(tmp_path, lun):
    parts = []
    for number in range(40):
        parts.append(tmp_path / f"{number}.raw")
        parts[-1].write_bytes(os.urandom((2 * number + 1) * 512 + MiB // 4))
    target = lun(16 * MiB, block_size=4096, old_data=True)
    done("-n", "-W", "--workers", 4, *parts, target.url)
    whole = b"".join(part.read_bytes() for part in parts)
    assert target.backing.read_bytes()[: len(whole)] == whole


def test_a_part_of_a_lun_that_begins_inside_a_block(tmp_path, lun):
    (tmp_path / "a.raw").write_bytes(os.urandom(40 * MiB))
    target = lun(41 * MiB, block_size=4096, old_data=True)
    portal, iqn, number = target.url.removeprefix("iscsi://").split("/")
    lun_options = f"file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={iqn},file.lun={number}"
    onto = f"driver=raw,offset=512,{lun_options}"
    done("-n", "-W", "--workers", 4, "--target-image-opts", tmp_path / "a.raw", onto)
    found = target.backing.read_bytes()
    assert found == b"\xa5" * 512 + (tmp_path / "a.raw").read_bytes() + b"\xa5" * (MiB - 512)


def test_an_nfs_target_of_odd_size_that_ends_in_zeros(tmp_path, nfs):
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(4 * MiB)
    nfs.path("odd.raw").write_bytes(b"\xa5" * (4 * MiB - 100))
    done("-n", tmp_path / "a.raw", nfs.url("odd.raw"))
    assert not any(nfs.path("odd.raw").read_bytes())
