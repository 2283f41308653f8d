"""A short form of `scripts/fuzz journals`, and that what nobody changed is gone on with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.mutation.journals import COPIES, Case, run_all

ROOT = Path(__file__).resolve().parents[2]


def test_no_journal_makes_a_resume_end_wrong():
    words = [sys.executable, ROOT / "scripts/fuzz", "journals", "--cases", "24", "--seed", "1", "--jobs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("24 cases, ")


def test_what_nobody_changed_is_gone_on_with(tmp_path: Path):
    verdicts = run_all([Case(0, 0, name, changed=False) for name in COPIES], tmp_path, 1)
    assert [(one.case.copy, one.code, one.wrong, one.words) for one in verdicts if one.code or one.wrong] == []
