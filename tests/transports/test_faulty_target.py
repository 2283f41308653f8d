"""The faulty target without a fault: qemu-img finds on it what its file holds, and writes what it should."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mpconv.model.units import KiB, MiB
from tests.conftest import identical, make_image, mpconv
from tests.support.faulty_target import FaultyTarget

KNOBS: list[dict[str, Any]] = [
    {},
    {"block": 4096, "max_ws": 2048, "max_unmap": 2048, "unmap_desc": 4, "gran": 8, "align": 3, "max_xfer": 256},
    {"digest": "CRC32C", "window": 2, "burst": 16 * KiB, "first": 4 * KiB, "initial_r2t": "No", "imm": "Yes"},
    {"lbpws": False, "lbprz": False, "b0": False, "mrdsl": 8 * KiB},
    {"host": "::1", "luns": {1, 5}},
]


@pytest.mark.parametrize("knobs", KNOBS)
def test_qemu_img_reads_and_writes_it(knobs: dict[str, Any], tmp_path: Path) -> None:
    source, backing = tmp_path / "source.raw", tmp_path / "lun.img"
    make_image(source, 8 * MiB)
    backing.write_bytes(os.urandom(8 * MiB))
    with FaultyTarget(path=backing, **knobs) as target:
        url = target.url(max(target.luns))
        for command in (["-n", source, url], [url, tmp_path / "out.raw"]):
            whole = ["qemu-img", "convert", "-f", "raw", "-O", "raw", *map(str, command)]
            subprocess.run(whole, check=True, timeout=60)
        assert identical(source, backing) and identical(source, tmp_path / "out.raw")
        assert target.logins >= 2 and target.bytes_written


@pytest.mark.parametrize("knobs", KNOBS)
def test_mpconv_reads_and_writes_it(knobs: dict[str, Any], tmp_path: Path) -> None:
    source, backing = tmp_path / "source.raw", tmp_path / "lun.img"
    make_image(source, 8 * MiB)
    backing.write_bytes(os.urandom(8 * MiB))
    with FaultyTarget(path=backing, **knobs) as target:
        url = target.url(max(target.luns))
        for command in (["-n", source, url], [url, tmp_path / "out.raw"]):
            done = mpconv("convert", "-f", "raw", "-O", "raw", *command)
            assert done.returncode == 0, done.stderr
        assert identical(source, backing) and identical(source, tmp_path / "out.raw")


def test_data_digests_are_not_to_be_had(tmp_path: Path) -> None:
    backing = tmp_path / "lun.img"
    backing.write_bytes(bytes(MiB))
    with FaultyTarget(path=backing, data_digest="CRC32C") as target:
        done = mpconv("info", target.url())
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "it may ask for data digests, which libiscsi does not know" in done.stderr
