"""A short form of `scripts/soak`, and that it notices what it is there for."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.soak import attempt
from tests.soak.cases import FILE, LUN, REMOTE, SOURCE, Case, Kind, MiB, make_case
from tests.soak.lab import Lab, labs
from tests.soak.run import Verdict, run, soak

PROGRAM = [sys.executable, "-m", "mpconv"]
SEED = 5
QUICK = [kind for kind in Kind if kind is not Kind.WORKER_SILENT]
PLAIN = Case(
    number=0, seed=1, pieces=(("noise", MiB), ("hole", MiB), ("text", 512)), source_format="raw", source_place=FILE,
    target_format="raw", target_place=FILE, target_options="", old=False, compress=False, in_order=True, workers=1,
    journal=False, verify=False, rate=64 * MiB, faults=(),
)  # fmt: skip


def test_what_goes_wrong_does_no_harm(tmp_path):
    cases = [make_case(SEED, number, QUICK) for number in range(8)]
    with labs(tmp_path / "labs", 4) as made:
        verdicts = soak(cases, made, PROGRAM)
    assert not [f"{verdict}\n{verdict.words}" for verdict in verdicts if verdict.wrong]
    assert sum(verdict.fired for verdict in verdicts) > len(verdicts)


def test_a_case_depends_on_its_seed_and_number_alone():
    cases = [make_case(1, number) for number in range(400)]
    assert cases == [make_case(1, number) for number in range(400)]
    assert cases[:9] != [make_case(2, number) for number in range(9)]
    assert {fault.kind for case in cases for fault in case.faults} == set(Kind)
    for case in cases:
        for fault in case.faults:
            assert bool(fault.side) == (fault.kind in REMOTE)
            place = case.source_place if fault.side == SOURCE else case.target_place
            assert not fault.side or place != FILE
    assert {case.source_place for case in cases} >= {FILE, LUN}
    kinds = {Kind.CUT, Kind.TERMINATED}
    assert {fault.kind for n in range(50) for fault in make_case(1, n, kinds).faults} == kinds


def judged(tmp_path, script: str, **changes: object) -> Verdict:
    """With a program that runs mpconv as $RUN (with all of its words), and knows $SOURCE and $TARGET."""
    program = tmp_path / "program"
    run_it = f'{sys.executable} -m mpconv "$@"'
    program.write_text(f'#!/bin/bash\nSOURCE="${{@: -2:1}}" TARGET="${{@: -1}}"\n{script.replace("RUN", run_it)}\n')
    program.chmod(0o755)
    return run(replace(PLAIN, **changes), Lab(tmp_path / "lab"), [str(program)])


@pytest.mark.parametrize(
    ("script", "wrong", "words"),
    [
        ("RUN", "", ""),
        ("RUN; printf X | dd of=$TARGET bs=1 seek=1000 conv=notrunc status=none", "wrong bytes", "offset 512"),
        ("exit 0", "false success", "no target"),
        ("truncate -s 1M $TARGET", "false success", "has 1048576 of"),
        ("RUN; printf X | dd of=$SOURCE bs=1 seek=1000 conv=notrunc status=none", "source changed", ""),
        ("RUN; sleep 1000 > /dev/null 2>&1 & exit 0", "processes left", "sleep"),
        ("echo 'mpconv: no' >&2; exit 1", "unexpected failure", "no fault that ends it"),
        ("RUN; echo 'Traceback' >&2; exit 0", "unexpected failure", "exit 0, and it said"),
        ("sleep 1000", "hang", "sleep"),
    ],
)
def test_what_is_wrong_is_noticed(tmp_path, monkeypatch, script, wrong, words):
    if wrong == "hang":
        monkeypatch.setattr(attempt, "LIMIT", 0.5)
    if wrong == "processes left":
        monkeypatch.setattr(attempt, "_TO_VANISH", 0.1)
    verdict = judged(tmp_path, script)
    assert verdict.wrong == wrong, verdict.words
    assert words in verdict.words


def test_a_qcow2_image_is_checked(tmp_path):
    damage = "RUN; printf XXXX | dd of=$TARGET bs=1 seek=48 conv=notrunc status=none"
    verdict = judged(tmp_path, damage, target_format="qcow2")
    assert verdict.wrong == "false success" and "qemu-img check" in verdict.words
