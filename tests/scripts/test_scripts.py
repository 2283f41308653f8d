"""The scripts that people run: the lab by hand, and a short form of the bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
