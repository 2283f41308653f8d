"""`mpconv convert` between real servers; qemu-img judges the bytes."""

from __future__ import annotations

import pytest

from tests.conftest import IQN, identical, make_image, mpconv

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
    assert (done.returncode, done.stderr) == (0, "")
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "zero", "a.raw", "b.raw"), "'zero' is not a valid integer"),
        (("-S", "100", "a.raw", "b.raw"), "Invalid buffer size"),
        (("http://x/y", "b.raw"), "unknown protocol 'http'"),
        (("/", "b.raw"), "Is a directory"),
        (("/no/such/file", "b.raw"), "No such file or directory"),
        (("nfs://no-such-host.invalid/x/y", "b.raw"), "Could not open"),
        (("iscsi://127.0.0.1:1/iqn.x/1", "b.raw"), "Could not open"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    (tmp_path / "a.raw").write_bytes(b"x" * 512)
    done = mpconv(
        "convert", *[x.replace("a.raw", f"{tmp_path}/a.raw").replace("b.raw", f"{tmp_path}/b.raw") for x in arguments]
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("mpconv: ") and done.stderr.count("\n") == 1


def test_refusals_on_the_servers(nfs, iscsi, lun):
    make_image(nfs.path("r.raw"), 2 * MiB)
    small = lun(MiB)
    cases = [
        (nfs.url("no-such-file"), small.url, "No such file"),
        (nfs.url("r.raw").replace(str(nfs.export), "/no/such/export"), small.url, "Could not open"),
        (nfs.url("r.raw"), small.url, "output file is smaller than input file"),
        (nfs.url("r.raw"), small.url.rsplit("/", 1)[0] + "/99", "Could not open"),
        (nfs.url("r.raw"), small.url.replace(IQN, "iqn.no-such"), "Could not open"),
        (nfs.url("r.raw"), nfs.url("r.raw"), "source and target are the same image"),
    ]
    for source, target, message in cases:
        done = mpconv("convert", source, target)
        assert done.returncode == 1, (source, target)
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_wrong_password_is_refused_and_never_shown(nfs, iscsi, tmp_path):
    backing = tmp_path / "chap.img"
    backing.write_bytes(bytes(MiB))
    iqn = iscsi.add_target("iqn.2026-11.org.mpconv:chap", ("user", "right-secret-1"))
    url = iscsi.url(iqn, iscsi.add_lun(iqn, backing)).replace("iscsi://", "iscsi://user%{}@")
    make_image(nfs.path("chap.raw"), MiB)
    done = mpconv("convert", nfs.url("chap.raw"), url.format("wrong-secret-1"))
    assert done.returncode == 1
    assert "Could not open" in done.stderr and "secret" not in done.stderr
    done = mpconv("convert", nfs.url("chap.raw"), url.format("right-secret-1"))
    assert done.returncode == 0, done.stderr
    assert identical(nfs.path("chap.raw"), backing)
