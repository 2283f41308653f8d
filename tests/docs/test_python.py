"""The programs in docs/python.md run as they are written, with other names for the servers, and are well typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_image

ROOT = Path(__file__).parents[2]
PROGRAMS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.DOTALL | re.MULTILINE)
MiB = 1 << 20


def run(program: str, where: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_image(tmp_path / "vm7.raw", 4 * MiB)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "vm7.raw", "-F", "raw", "vm7.qcow2"]
    subprocess.run(create, cwd=tmp_path, check=True)
    return tmp_path


def program_with(words: str) -> str:
    [found] = [program for program in PROGRAMS if words in program]
    return found


def test_a_backup(images, nfs, lun):
    disk = lun(4 * MiB)
    subprocess.run(["cp", images / "vm7.raw", disk.backing], check=True)
    program = program_with("def backup")
    program = program.replace("iscsi://10.0.0.5/iqn.2026-01.org.example:vm7/0", disk.url)
    told = run(program.replace("nfs://10.0.0.6/backup/vm7.qcow2", nfs.url("vm7.qcow2")), images)
    assert "flush: 100 %" in told and f"\n{4 * MiB} bytes in " in told
    made = ["qemu-img", "compare", images / "vm7.raw", nfs.export / "vm7.qcow2"]
    subprocess.run(made, check=True, capture_output=True)


def test_a_copy_goes_on(images):
    program = program_with("vm7.journal")
    assert run(program, images) == f"{4 * MiB} bytes in one go\n"
    assert (images / "copy.raw").read_bytes() == (images / "vm7.raw").read_bytes()
    assert run(program, images) == "it was complete already\n"


def test_many_copies(images):
    assert run(program_with("def nightly"), images).splitlines() == [
        f"vm7: {4 * MiB} bytes are in vm7.qcow2",
        "vm8: failed: Could not open 'vm8.raw': No such file or directory",
    ]
    subprocess.run(["qemu-img", "compare", "vm7.raw", "vm7.qcow2"], cwd=images, check=True, capture_output=True)


def test_an_examination(images):
    told = run(program_with("examine"), images)
    assert re.fullmatch(r"vm7\.raw: a copy would have \d workers\n", told)


def test_what_an_image_is(images):
    told = run(program_with("backing_chain"), images).splitlines()
    assert told[0].startswith(f"vm7.qcow2: qcow2, {4 * MiB} bytes")
    assert told[1].startswith(f"vm7.raw: raw, {4 * MiB} bytes")
    assert "bytes of it are zeros" in told[2] and len(told) == 3


def test_a_copy_with_a_limit(images):
    assert run(program_with("def impatient"), images) == ""
    assert (images / "copy.raw").read_bytes() == (images / "vm7.raw").read_bytes()
    (images / "vm7.raw").unlink()
    assert (
        run(program_with("def impatient"), images) == "no copy: Could not open 'vm7.raw': No such file or directory\n"
    )


def test_they_are_well_typed(tmp_path):
    """As a program sees them that has the package, and not its source."""
    for number, program in enumerate(PROGRAMS):
        (tmp_path / f"program{number}.py").write_text(program)
    (tmp_path / "wrong.py").write_text('import mpconv\n\nmpconv.blocking.info("a").size.upper()\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *sorted(tmp_path.glob("*.py"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout.splitlines() == [
        'wrong.py:3: error: "int" has no attribute "upper"  [attr-defined]',
        f"Found 1 error in 1 file (checked {len(PROGRAMS) + 1} source files)",
    ]
