"""The differential test itself: it is quiet where nothing differs, and a program that does wrong is caught."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.differential.cases import ABSENT, FILE, LUN4096, LUNS, NFS, Case, Image, Piece, make_case
from tests.differential.run import Lab, Program, Run, compare_case, first_line, put, recipe
from tests.differential.shrink import merged, shrink, signature
from tests.differential.survey import survey

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/differential"
TARGET = Image("target.raw", ABSENT)
SOURCE = Image("a.raw", FILE, (Piece("data", 5000), Piece("zeros", 70_000), Piece("hole", 9000), Piece("data", 300)))
OLD = Image("target.raw", FILE, (Piece("data", 100_000),), 5_000_003)
COPY = Case("plain", (("-W",), ("-m", "3"), ("-f", "raw")), (SOURCE, replace(SOURCE, name="b.raw")), TARGET)
OVER_OLD = Case("existing", (("-n",), ("-W",)), (SOURCE,), OLD)
REFUSED = Case("refusal", (("-m", "4"), ("-S", "100"), ("-W",)), (SOURCE,), TARGET)

WRONG = {
    "flips a byte": ("""printf X | dd of="$target" bs=1 seek=4999 conv=notrunc status=none""", COPY, "content"),
    "writes too much": ("""printf X >> "$target" """, COPY, "size"),
    "exits with 2": ("""exit $((code * 2))""", REFUSED, "exit code"),
    "other words": ("""echo "qemu-img: no" >&2; exit $code""", REFUSED, "stderr"),
    "changes a source": ("""printf X | dd of=a.raw bs=1 conv=notrunc status=none""", COPY, "changed sources"),
    "leaves a file": ("""touch stray""", COPY, "files"),
    "fills the holes": ("""cp --sparse=never "$target" x && mv x "$target" """, COPY, "allocation"),
    "makes no target": ("""rm -f "$target" """, COPY, "files"),
    "skips zeros": ("", OVER_OLD, "content"),
}  # fmt: skip


def wrong_program(folder: Path, mistake: str) -> Program:
    """qemu-img, then the mistake when it copied (when it failed, for a mistake in what is said); "": it skips zeros."""
    when = "!=" if "exit" in mistake else "="
    more = "" if mistake else "--target-is-zero"
    silent = "2>&-" if "echo" in mistake else ""
    path = folder / "qemu-img-wrong"
    path.write_text(
        f"""#!/bin/bash
target="${{@: -1}}"
qemu-img "$1" {more} "${{@:2}}" {silent}
code=$?
if [ $code {when} 0 ]; then
  {mistake or ":"}
fi
exit $code
"""
    )
    path.chmod(0o755)
    return Program((str(path), "convert"))


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "lab")


def test_qemu_img_does_what_qemu_img_does(registered_nfs, iscsi, tmp_path):
    made = survey(range(150), 3, Program(("qemu-img", "convert")), Lab(tmp_path, registered_nfs, iscsi))
    assert not made.failures, made.told(Program(("qemu-img", "convert")), 3)
    assert made.cases.total() == 150 and len(made.cases) > 8


def test_most_random_copies_succeed_and_every_kind_is_there(lab):
    cases = [make_case(5, number) for number in range(400)]
    assert {case.kind for case in cases} == {
        *("plain", "overwrite", "existing", "concatenation", "creation", "refusal", "usage", "image-opts"),
    }
    copies = [case for case in cases if case.kind in ("plain", "existing", "concatenation", "creation")][:60]
    program = Program(("qemu-img", "convert"))
    codes = [Run(case, program, lab, 0).outcome().code for case in copies]
    assert codes.count(0) > len(codes) * 0.8


def test_a_case_depends_on_its_seed_and_number_alone():
    remote = (NFS, *LUNS)
    assert [make_case(1, number, remote) for number in range(50)] == [
        make_case(1, number, remote) for number in range(50)
    ]
    assert [make_case(1, number) for number in range(50)] != [make_case(2, number) for number in range(50)]
    assert {image.place for number in range(300) for image in make_case(1, number, remote).images} > {NFS, *LUNS}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_caught_and_shrunk(wrong, lab, tmp_path):
    mistake, case, what = WRONG[wrong]
    program = wrong_program(tmp_path, mistake)
    assert compare_case(case, Program(("qemu-img", "convert")), lab) == []
    found = compare_case(case, program, lab)
    assert what in [one.what for one in found]
    least, still = shrink(case, found, lambda less: compare_case(less, program, lab), 100)
    assert signature(still) == signature(found)
    assert len(least.sources) == 1 and len(least.sources[0].pieces) < 4
    assert least.options == {"existing": (("-n",),), "refusal": (("-S", "100"),), "plain": ()}[case.kind]


def test_a_random_survey_tells_what_is_wrong_once(lab, tmp_path):
    program = wrong_program(tmp_path, WRONG["writes too much"][0])
    made = survey(range(40), 8, program, lab, shrink_each=2, budget=40)
    assert made.failures and made.failed.total() > len(made.failures)
    assert "qemu-img-wrong" in made.told(program, 8) and "size:" in made.told(program, 8)


def test_the_recipe_makes_the_same_image(tmp_path):
    image = make_case(1, 2).sources[0]
    image = replace(image, pieces=(*image.pieces, *SOURCE.pieces), salt=3_000_003)
    case = Case("plain", (("-S", "0"),), (image,), TARGET)
    *made, theirs, ours = recipe(case, Program(("mpconv", "convert"), speaks_mpconv=True)).splitlines()
    assert (theirs, ours) == ("qemu-img convert -S 0 a.raw target.raw", "mpconv convert -S 0 a.raw target.raw")
    subprocess.run("\n".join(made), shell=True, cwd=tmp_path, check=True)
    put(image, tmp_path / "put.raw")
    assert (tmp_path / image.name).read_bytes() == (tmp_path / "put.raw").read_bytes() == image.content()


def test_mpconv_is_given_its_own_names(lab):
    mpconv = Program(("mpconv", "convert"), speaks_mpconv=True)
    case = replace(COPY, spelling="long", workers=2)
    last = recipe(case, mpconv).splitlines()[-1]
    assert last == "mpconv convert --workers 2 --oob-writes --parallel 3 --source-format raw a.raw b.raw target.raw"
    assert recipe(case, Program(("qemu-img", "convert"))).endswith("-W -m 3 -f raw a.raw b.raw target.raw")


@pytest.mark.parametrize(
    ("qemu", "mpconv"),
    [
        ("qemu-img: Could not open 'x': Could not open 'x': No", "mpconv: Could not open 'x': No"),
        ("qemu-img: suffixes for\nqemu-img: kilobytes, megabytes", "mpconv: suffixes for kilobytes, megabytes"),
        ("qemu-img: missing\nTry 'qemu-img --help' for more information", "mpconv: missing"),
        ('qemu-img: no "write" lock\nIs another process using the image [a]?', 'mpconv: no "write" lock'),
        ("qemu-img: number of coroutines is between 1 and 16", "mpconv: number of coroutines is between 1 and 1024"),
    ],
)
def test_words_that_may_differ(qemu, mpconv):
    assert first_line(qemu) == first_line(mpconv)
    assert first_line(qemu) != first_line(mpconv + " more")


def test_a_lun_keeps_its_size_when_it_is_shrunk(iscsi, tmp_path):
    lab = Lab(tmp_path, None, iscsi)
    target = Image("target.raw", LUN4096, (Piece("data", 1 << 20),))
    case = Case("remote", (("-n",), ("-W",)), (SOURCE,), target)
    program = wrong_program(tmp_path, """qemu-io -f raw -c "write -P 7 0 512" "$target" > /dev/null""")
    found = compare_case(case, program, lab)
    assert [one.what for one in found] == ["content"]
    least, _ = shrink(case, found, lambda less: compare_case(less, program, lab), 40)
    assert least.target.size == 1 << 20 and ("-W",) not in least.options


def test_neighbours_are_merged():
    pieces = [Piece("data", 1), Piece("data", 2), Piece("hole", 0), Piece("data", 3), Piece("hole", 1)]
    assert merged(pieces) == (Piece("data", 6), Piece("hole", 1))


def test_the_script(tmp_path):
    def script(command: str) -> subprocess.CompletedProcess:
        options = ["--cases", "30", "--seed", "4", "--only", "local", "--budget", "20", "--shrink", "1"]
        return subprocess.run(
            [sys.executable, str(SCRIPT), *options, "--dir", str(tmp_path), "--command", command],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    done = script("qemu-img")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 distinct failure(s)" in done.stdout
    program = wrong_program(tmp_path, WRONG["flips a byte"][0])
    done = script(program.command[0])
    assert done.returncode == 1
    assert f"\nqemu-img convert a.raw target.raw\n{program.command[0]} convert a.raw target.raw\n" in done.stdout
