"""A short form of `scripts/fuzz images`, and that it notices what it is there for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation import campaign, images
from tests.mutation.anatomy import dissect
from tests.mutation.campaign import KINDS, Verdict
from tests.mutation.changes import mutate
from tests.mutation.images import SHAPES_BY_NAME, Case, Lab, make_case
from tests.mutation.shapes import SHAPES, KiB, build

ROOT = Path(__file__).resolve().parents[2]


def test_no_image_makes_a_copy_end_wrong():
    words = [sys.executable, ROOT / "scripts/fuzz", "images", "--cases", "40", "--seed", "3", "--jobs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    count, written = done.stdout.splitlines()[0].split(", ")[:2]
    assert count == "40 cases" and int(written.split()[0]) >= 5


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    (folder / "noise").write_bytes(os.urandom(8 << 20))
    return {name: build(SHAPES_BY_NAME[name], folder) for name in ("plain", "snapshots", "data-file")}


def test_a_sound_image_of_each_shape_is_written_and_what_is_asked_of_it_is_true(tmp_path: Path):
    cases = [Case(0, number, shape.name, shape.size - 512, 0, (), changed=False) for number, shape in enumerate(SHAPES)]
    verdicts = list(images.run_all(cases, tmp_path / "labs", 2))
    assert not [str(verdict) for verdict in verdicts if verdict.wrong]
    assert [verdict.case.shape for verdict in verdicts if verdict.code] == ["bitmaps"]


def test_a_case_depends_on_its_seed_and_number_alone(sound: dict[str, Path]):
    cases = [make_case(1, number) for number in range(300)]
    assert cases == [make_case(1, number) for number in range(300)]
    assert cases[:9] != [make_case(2, number) for number in range(9)]
    assert {case.shape for case in cases} == {shape.name for shape in SHAPES}
    for path in sound.values():
        made = []
        for _ in range(2):
            image = bytearray(path.read_bytes())
            made.append((mutate(random.Random(7), image), bytes(image)))
        assert made[0] == made[1]
    content = sound["snapshots"].read_bytes()
    told = set(
        word.partition(",")[0] for seed in range(300) for word in mutate(random.Random(seed), bytearray(content))
    )
    assert {"header", "L1", "L2", "refcount table", "snapshot", "snapshot's table", "extension"} <= set(told)


def test_every_field_has_its_place(sound: dict[str, Path]):
    found = dissect(sound["snapshots"].read_bytes())
    assert (found.cluster, found.order, len(found.l1)) == (64 * KiB, 4, 1)
    assert len(found.snapshots) == 16 and len(found.refcounts) == 1 and len(found.inactive) > 20
    assert all(place % found.cluster == 0 for place in (*found.tables, *found.data))


def judged(sound: dict[str, Path], folder: Path, shape: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """Of an image that nobody changed, with a command that does this instead of mpconv's."""
    lab = Lab(sound, folder / "lab")

    def measure(verdict: Verdict, where: Path, words: list[str]) -> None:
        done = subprocess.run(["bash", "-c", script], cwd=where, capture_output=True, text=True, check=False)
        verdict.code, verdict.words = done.returncode, done.stderr

    monkeypatch.setattr(images, "measure", measure)
    return lab.run(Case(1, 1, shape, 300 * KiB, 0, (), changed=False))


COPY = "qemu-img convert -n -f raw -O qcow2 source.raw image.qcow2"
IO = "qemu-io -f qcow2 image.qcow2 >/dev/null -c"


@pytest.mark.parametrize(
    ("shape", "script", "wrong"),
    [
        ("snapshots", COPY, ""),
        ("data-file", COPY, ""),
        ("plain", "echo 'mpconv: no' >&2; exit 1", ""),
        ("plain", "true", "wrong bytes"),
        ("plain", f"{COPY}; {IO} 'write 100k 512'", "wrong bytes"),
        ("plain", f"{COPY}; {IO} 'write 600k 512'", "wrong bytes"),
        ("plain", f"{COPY}; printf '\\0\\0' | dd of=image.qcow2 bs=1 seek=131074 conv=notrunc status=none", "worse"),
        ("snapshots", f"{COPY}; qemu-img snapshot -d one image.qcow2", "snapshot"),
        ("plain", "echo 'mpconv: no' >&2; echo more >&2; exit 1", "words"),
        ("plain", "echo 'mpconv: internal error' >&2; exit 1", "words"),
        ("plain", "exit 1", "words"),
        ("plain", f"{COPY}; echo 'mpconv: no' >&2; exit 1", "written"),
        ("plain", "exit 2", "ended otherwise"),
    ],
)
def test_what_goes_wrong_is_seen(sound, tmp_path, monkeypatch, shape: str, script: str, wrong: str):
    verdict = judged(sound, tmp_path, shape, script, monkeypatch)
    assert verdict.wrong == wrong and (not wrong or wrong in KINDS), verdict


def test_memory_time_and_what_hangs_are_measured(sound, tmp_path, monkeypatch):
    case = Case(1, 1, "plain", 64 * KiB, 0, (), changed=False)
    lab = Lab(sound, tmp_path / "lab")
    for name, limit, wrong in (
        ("MOST_MEMORY", 1 << 20, "memory"),
        ("MOST_SECONDS", 0.0, "time"),
        ("HUNG", 0.0, "hung"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(campaign, name, limit)
            assert lab.run(case).wrong == wrong
