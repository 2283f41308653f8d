"""A few hundred random cases; `scripts/differential` runs thousands."""

from __future__ import annotations

import sys

import pytest

from tests.differential.run import Lab, program_of
from tests.differential.survey import survey

CASES = 240


@pytest.mark.timeout(300)
def test_what_qemu_img_does(registered_nfs, iscsi, tmp_path):
    program = program_of((sys.executable, "-m", "mpconv"))
    made = survey(range(CASES), 20, program, Lab(tmp_path, registered_nfs, iscsi), shrink_each=1, budget=25)
    assert not made.failures, f"\n{made.summary()}\n\n{made.told(program, 20)}"
