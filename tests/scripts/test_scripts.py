"""The scripts that people run: the lab by hand, and a short form of the bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_lab_goes_up_says_what_runs_and_leaves_nothing(tmp_path):
    assert script("lab", "--dir", tmp_path, "status").returncode == 1
    up = script("lab", "--dir", tmp_path, "up")
    assert up.returncode == 0, up.stderr
    pids = json.loads((tmp_path / "lab.json").read_text())["pids"]
    try:
        assert script("lab", "--dir", tmp_path, "status").stdout == up.stdout
        assert "is up already" in script("lab", "--dir", tmp_path, "up").stdout
        assert script("lab", "--dir", tmp_path, "url", "iscsi", 1).stdout.startswith("iscsi://127.0.0.1:")
        assert "a.raw?nfsport=" in script("lab", "--dir", tmp_path, "url", "nfs", "a.raw").stdout
    finally:
        down = script("lab", "--dir", tmp_path, "down")
    assert (down.returncode, down.stdout) == (0, "The lab is down.\n")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert script("lab", "--dir", tmp_path, "down").stdout == "Nothing runs.\n"


def test_the_bench_times_both_programs_and_checks_the_bytes(tmp_path):
    command = Path(sys.executable).with_name("mpconv")
    results = tmp_path / "results.json"
    done = script(
        "bench", "--size", 8, "--rounds", 1, "--workers", "2", "--cache", "unsafe", "--dir", tmp_path,
        "--only", "qemu-img -m 8,mpconv --workers 2", "--json", results, "--mpconv", command,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["rows"]
    assert set(rows) == {"nfs-iscsi", "nfs-null", "file-iscsi", "iscsi-nfs", "full-iscsi-nfs"}
    for row in rows.values():
        for figures in row["unsafe"].values():
            assert len(figures["seconds"]) == 1 and figures["seconds"][0] > 0 and figures["peak_kib"][0] > 1024
    assert "nfs-iscsi, -t unsafe (best of qemu-img: qemu-img -m 8)" in done.stdout
    assert not any(path.name.startswith("mpconv-bench-") for path in tmp_path.iterdir())


def test_the_bench_limits_the_link_and_says_what_it_needs_itself(tmp_path):
    results = tmp_path / "results.json"
    done = script(
        "bench", "--size", 64, "--rounds", 1, "--cache", "unsafe", "--dir", tmp_path, "--link", 800,
        "--only", "qemu-img -m 8", "--rows", "link-nfs-iscsi,link-nfs3-iscsi,link-nfs41-iscsi", "--json", results,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(results.read_text())
    [data, image] = facts["link"]["limited"].values()
    possible = 64 * 8 * 1.048576 / 800
    assert image > possible and data == pytest.approx(image * 40 / 64)
    assert set(facts["rows"]) == {"link-nfs-iscsi", "link-nfs3-iscsi", "link-nfs41-iscsi"}
    for row in facts["rows"].values():
        assert row["unsafe"]["qemu-img -m 8"]["seconds"][0] > 0.98 * possible
    assert f"the link itself needs {image:.2f} s for image, 64 MiB" in done.stdout


def test_the_bench_has_a_link_that_is_long(tmp_path):
    results = tmp_path / "results.json"
    done = script(
        "bench", "--size", 2, "--rounds", 1, "--cache", "unsafe", "--dir", tmp_path, "--link", 0, "--round-trip", 50,
        "--only", "qemu-img -m 8", "--rows", "far-nfs-iscsi", "--json", results,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [seconds] = json.loads(results.read_text())["rows"]["far-nfs-iscsi"]["unsafe"]["qemu-img -m 8"]["seconds"]
    assert seconds > 20 * 0.05, "to open both images takes thirty round trips"


def test_the_bench_counts_what_is_left_of_old_data_and_compares(tmp_path):
    results = tmp_path / "results.json"
    done = script(
        "bench", "--size", 16, "--rounds", 1, "--cache", "unsafe", "--dir", "/dev/shm",
        "--only", "qemu-img,qemu-img -m 8", "--rows", "zero-iscsi,sparse-8T,compare", "--json", results,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["rows"]
    assert rows["zero-iscsi"]["unsafe"]["qemu-img -m 8"]["left_kib"][0] < 64
    assert 0 < rows["sparse-8T"]["unsafe"]["qemu-img -m 8"]["left_kib"][0] < 1024
    assert list(rows["compare"]["unsafe"]) == ["qemu-img"]
    assert "left KiB" in done.stdout


def test_the_bench_copies_qcow2_images_and_compresses(tmp_path):
    command = Path(sys.executable).with_name("mpconv")
    results = tmp_path / "results.json"
    done = script(
        "bench", "--size", 16, "--programs", 8, "--rounds", 1, "--cache", "unsafe", "--dir", "/dev/shm",
        "--rows", "compress-zlib,compress-zstd,qcow2-nfs-iscsi,nfs-iscsi-qcow2,compressed-nfs-iscsi",
        "--only", "qemu-img -c -m 8,mpconv -c,qemu-img -m 8,mpconv -W", "--workers", "default",
        "--json", results, "--mpconv", command,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["rows"]
    for row in ("compress-zlib", "compress-zstd"):
        sizes = [figures["size_bytes"][0] for figures in rows[row]["unsafe"].values()]
        assert len(sizes) == 2 and all(0 < size < 8 << 20 for size in sizes)
    for row in ("qcow2-nfs-iscsi", "nfs-iscsi-qcow2", "compressed-nfs-iscsi"):
        assert list(rows[row]["unsafe"]) == ["qemu-img -m 8", "mpconv -W"]
    assert "/ qemu" in done.stdout


def test_the_bench_knows_its_rows():
    done = script("bench", "--rows", "nfs-iscsi,link-smb")
    assert (done.returncode, done.stderr) == (1, "bench: no such row: link-smb\n")


def test_the_bench_notices_wrong_bytes(tmp_path):
    """A program that copies nothing must not be timed."""
    liar = tmp_path / "liar"
    liar.write_text("#!/bin/sh\nexit 0\n")
    liar.chmod(0o755)
    done = script(
        "bench", "--size", 8, "--rounds", 1, "--workers", "2", "--cache", "unsafe", "--dir", tmp_path,
        "--only", "mpconv --workers 2", "--rows", "nfs-iscsi", "--mpconv", liar,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the result differs from the template" in done.stderr
    assert os.listdir(tmp_path) == ["liar"]


def test_the_bench_notices_a_comparison_that_sees_nothing(tmp_path):
    blind = tmp_path / "blind"
    blind.write_text("#!/bin/sh\nexit 0\n")
    blind.chmod(0o755)
    done = script(
        "bench", "--size", 8, "--rounds", 1, "--cache", "unsafe", "--dir", tmp_path, "--only", "mpconv",
        "--rows", "compare", "--mpconv", blind,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ended with 0, not 1" in done.stderr
