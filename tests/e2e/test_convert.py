"""`mpconv convert` between real servers; qemu-img judges the bytes."""

from __future__ import annotations

import pytest

from tests.conftest import identical, make_image, mpconv

MiB = 1 << 20
ORDERS = [(), ("-W",)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_nfs_to_iscsi_and_back(nfs, lun, order, workers):
    name = f"source{workers}{len(order)}.raw"
    make_image(nfs.path(name), 40 * MiB, seed=workers)
    target = lun(40 * MiB, old_data=True)
    done = mpconv("convert", "--workers", workers, *order, nfs.url(name), target.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(nfs.path(name), target.backing)
    done = mpconv("convert", "--workers", workers, *order, target.url, nfs.url("back" + name))
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(nfs.path(name), nfs.path("back" + name))


@pytest.mark.parametrize("size", [0, 1, 512, 4096, 1000_001, 5 * MiB + 512, 9 * MiB + 4095])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_awkward_sizes(nfs, lun, size, block_size):
    name = f"awkward{size}-{block_size}.raw"
    make_image(nfs.path(name), size)
    target = lun(12 * MiB, block_size=block_size, old_data=True)
    done = mpconv("convert", "-n", nfs.url(name), target.url)
    assert done.returncode == 0 and ("is empty" if size == 0 else "") in done.stderr, done
    assert done.stderr.count("\n") == (size == 0), done
    rounded = -(-size // 512) * 512
    expected = nfs.path(name).read_bytes() + bytes(rounded - size)
    stored = target.backing.read_bytes()
    assert stored[:rounded] == expected
    assert stored[rounded:] == b"\xa5" * (12 * MiB - rounded)


def test_local_files(tmp_path):
    make_image(tmp_path / "a.raw", 7 * MiB + 100)
    done = mpconv("convert", "-p", tmp_path / "a.raw", tmp_path / "b.raw")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "    (100.00/100%)"
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_a_question_mark_in_a_name_on_an_nfs_server(nfs, tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    done = mpconv("convert", tmp_path / "a.raw", nfs.url("what%3F.raw"))
    assert (done.returncode, done.stderr) == (0, "")
    assert identical(tmp_path / "a.raw", nfs.path("what?.raw"))
    assert mpconv("compare", nfs.url("what%3f.raw"), tmp_path / "a.raw").returncode == 0
