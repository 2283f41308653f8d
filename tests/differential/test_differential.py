"""A hundred and fifty random cases; `scripts/differential` runs thousands."""

from __future__ import annotations

import sys

import pytest

from tests.differential.run import Lab, program_of
from tests.differential.survey import survey

SEED = 20
CASES = 30


@pytest.mark.parametrize("first", range(0, 150, CASES))
def test_what_qemu_img_does(first, registered_nfs, iscsi, tmp_path):
    program = program_of((sys.executable, "-m", "mpconv"))
    numbers = range(first, first + CASES)
    made = survey(numbers, SEED, program, Lab(tmp_path, registered_nfs, iscsi), shrink_each=1, budget=25)
    assert not made.failures, f"\n{made.summary()}\n\n{made.told(program, SEED)}"
