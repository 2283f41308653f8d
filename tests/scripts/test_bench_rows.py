"""The bench's rows and tables: what is run, and what is told of it."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.bench_images import fault, make_empty, make_programs, make_qcow2, poison
from tests.support.bench_rows import MORE, ROWS, USUAL, Setting, command, settings, together
from tests.support.timing import Figures, table

QEMU, OURS = Setting("qemu-img", ("-m", "8")), Setting("mpconv", ("-W",))


@pytest.mark.parametrize(
    ("row", "setting", "expected"),
    [
        ("nfs-iscsi", QEMU, "convert -f raw -m 8 -t unsafe SOURCE -n TARGET"),
        ("iscsi-nfs", OURS, "convert -f raw -W -t unsafe SOURCE TARGET"),
        (
            "nfs-null",
            QEMU,
            "convert -f raw -m 8 -t unsafe SOURCE -n --target-image-opts "
            "driver=raw,file.driver=null-co,file.size=TARGET",
        ),
        ("nfs-null", OURS, "convert -f raw -W -t unsafe SOURCE -O raw null:"),
        ("compare", QEMU, "compare -m 8 -T unsafe -f raw -F raw SOURCE TARGET"),
        ("qcow2-nfs-iscsi", OURS, "convert -f qcow2 -W -t unsafe SOURCE -n TARGET"),
        ("compressed-nfs-iscsi", OURS, "convert -f qcow2 -W -t unsafe SOURCE -n TARGET"),
        ("nfs-iscsi-qcow2", QEMU, "convert -f raw -m 8 -t unsafe SOURCE -O qcow2 TARGET"),
        ("deploy-4", QEMU, "convert -f raw -m 8 -t unsafe SOURCE -n TARGET"),
        ("deploy-4", OURS, "deploy -f raw -W -t unsafe -n SOURCE TARGET"),
        (
            "compress-zstd",
            Setting("mpconv", ("-c",)),
            "convert -f raw -c -t unsafe SOURCE -O qcow2 -o compression_type=zstd TARGET",
        ),
    ],
)
def test_commands(row, setting, expected):
    assert " ".join(command(ROWS[row], setting, "unsafe", "SOURCE", "TARGET")) == expected


def names(row: str, *workers: str, requests: tuple[str, ...] = ("default",)) -> list[str]:
    return [setting.name for setting in settings(ROWS[row], list(workers), list(requests))]


def test_settings():
    qemu = ["qemu-img -m 1", "qemu-img -m 8", "qemu-img -m 8 -W", "qemu-img -m 16 -W"]
    for row in ("nfs-iscsi", "qcow2-nfs-iscsi", "nfs-iscsi-qcow2"):
        own = ["mpconv", "mpconv --workers 2", "mpconv -W", "mpconv -W --workers 2"]
        assert names(row, "default", "2") == qemu + own
    assert names("deploy-4", "1") == [
        "qemu-img -m 8",
        "qemu-img -m 8 -W",
        "mpconv --workers 1",
        "mpconv -W --workers 1",
    ]
    assert names("nfs-iscsi", "default", "2", requests=("default", "16"))[4:8] == [
        "mpconv",
        "mpconv -m 16",
        "mpconv --workers 2",
        "mpconv --workers 2 -m 16",
    ]
    assert names("compare", "default", "2") == ["qemu-img", "mpconv", "mpconv --workers 2"]
    for row in ("compress-zlib", "compress-zstd"):
        assert names(row, "1") == ["qemu-img -c -m 16 -W", "qemu-img -c -m 8", "mpconv -c -W", "mpconv -c"]


@pytest.mark.parametrize(("last", "code"), [("true", 0), ("false", 1)])
def test_commands_that_run_together_end_well_when_all_do(tmp_path, last, code):
    fifo = tmp_path / "it's a fifo"
    os.mkfifo(fifo)
    commands = [["sh", "-c", 'exec cat < "$0"', str(fifo)], ["sh", "-c", 'echo said > "$0"', str(fifo)], [last]]
    done = subprocess.run(together(commands), capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (code, "said\n")


def test_every_row_is_offered_once():
    assert sorted([*USUAL, *MORE]) == sorted(ROWS)


def test_sizes_stand_beside_those_of_the_fastest_qemu_img():
    found = {
        "qemu-img -c -m 8": Figures([9.0], [9.0], [1024], [], [100 << 20]),
        "qemu-img -c -m 16 -W": Figures([8.0], [9.0], [1024], [], [200 << 20]),
        "mpconv -c": Figures([1.0], [2.0], [2048], [], [210 << 20]),
    }
    title, header, *lines = table("row", found)
    assert title == "row (best of qemu-img: qemu-img -c -m 16 -W)"
    assert header.endswith("size MiB  / qemu")
    assert [line.split()[-2:] for line in lines] == [["100.0", "0.500"], ["200.0", "1.000"], ["210.0", "1.050"]]
    assert lines[2].split()[2:6] == ["1.00", "1.00", "1.00", "8.00"]
    for figures in found.values():
        figures.size_bytes.clear()
    assert "size MiB" not in table("row", found)[1]


def test_a_wrong_result_is_found(tmp_path):
    raw, good, hole = tmp_path / "programs.raw", tmp_path / "good.qcow2", tmp_path / "hole.raw"
    make_programs(raw, 3 << 20)
    assert raw.stat().st_size == 3 << 20
    make_qcow2(good, raw, "compressed.qcow2")
    assert good.stat().st_size < 3 << 20
    assert fault(raw, good, "qcow2") is None
    make_empty(hole, 3 << 20)
    assert fault(raw, hole, "raw") == "the result differs from the programs"
    make_qcow2(tmp_path / "hole.qcow2", hole, "qcow2")
    assert fault(raw, tmp_path / "hole.qcow2", "qcow2") == "the result differs from the programs"
    poison(good)
    assert "qemu-img check ends with" in (fault(raw, good, "qcow2") or "")
