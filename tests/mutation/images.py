"""`convert -n -O qcow2` into images that somebody changed, case by case, with qemu-img as the judge.

What ends with 0 reads as the source, as far as that went, and behind it as before; a check finds no more in it than
before, and snapshots read as they did. What does not says why in one line, and has written nothing. The same seed and
number make the same case of the same images.
"""

from __future__ import annotations

import asyncio
import filecmp
import importlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpconv.formats.opening import OpenOptions, open_source
from mpconv.model.errors import MpconvError
from mpconv.model.place import Place, Trust
from tests.mutation.campaign import HUNG, Verdict, campaign, measure, side_by_side
from tests.mutation.changes import mutate
from tests.mutation.shapes import BASE, SHAPES, KiB, MiB, Shape, build_all

_MOST_READ = 16 * MiB
SHAPES_BY_NAME = {shape.name: shape for shape in SHAPES}


@dataclass(frozen=True, slots=True)
class Case:
    """`size`: bytes of the source, `zeros`: of them at its beginning. `options`: of the command line. `changed`:
    whether the image is.
    """

    seed: int
    number: int
    shape: str
    size: int
    zeros: int
    options: tuple[str, ...]
    changed: bool = True


def make_case(seed: int, number: int) -> Case:
    """The case of that number."""
    chance = random.Random(f"{seed}/{number}")
    shape = chance.choice(SHAPES)
    size = chance.choice([shape.size, shape.size, 64 * KiB, 512, 100 * KiB + 512, shape.size - 512, shape.size // 2])
    size = size // 512 * 512
    zeros = chance.choice([0, 0, 0, size // 3, size])
    options = chance.choice([(), (), (), ("-W",), ("-W",), ("-S", "0"), ("-c",) if shape.data_file is None else ()])
    return Case(seed, number, shape.name, size, zeros, options)


@dataclass(frozen=True, slots=True)
class Lab:
    """`images`: the sound ones, by name; `folder`: for one process at a time."""

    images: dict[str, Path]
    folder: Path

    def run(self, case: Case) -> Verdict:
        """One case."""
        shape = SHAPES_BY_NAME[case.shape]
        sound = self.images[case.shape]
        folder = self.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        image = bytearray(sound.read_bytes())
        verdict = Verdict(case)
        if case.changed:
            verdict.changes = mutate(random.Random(f"{case.seed}/{case.number}/changes"), image)
        (folder / "image.qcow2").write_bytes(image)
        for name in (BASE, *([shape.data_file] if shape.data_file else [])):
            shutil.copy(sound.parent / name, folder / name)
        with (sound.parent.parent / "noise").open("rb") as noise:
            source = bytes(case.zeros) + noise.read(case.size - case.zeros)
        (folder / "source.raw").write_bytes(source)
        before = shutil.copytree(folder, folder / "before")
        words = ["convert", "-n", "-f", "raw", "-O", "qcow2", "--workers", "1", "--allow-backing"]
        words += [f"--allow-data-file={folder}", *case.options, "source.raw", "image.qcow2"]
        measure(verdict, folder, words)
        if verdict.wrong:
            return verdict
        try:
            _judge(verdict, shape, folder, before, source)
        except subprocess.TimeoutExpired:
            verdict.wrong, verdict.words = "hung", "the judge"
        return verdict


def _judge(verdict: Verdict, shape: Shape, folder: Path, before: Path, source: bytes) -> None:
    lines = verdict.words.splitlines()
    if "Traceback" in verdict.words or "internal error" in verdict.words:
        verdict.wrong = "words"
    elif verdict.code not in (0, 1):
        verdict.wrong = "ended otherwise"
    elif verdict.code == 1:
        names = ["image.qcow2", *([shape.data_file] if shape.data_file else [])]
        if len(lines) != 1 or not lines[0].startswith("mpconv: "):
            verdict.wrong = "words"
        elif any(not filecmp.cmp(folder / name, before / name, shallow=False) for name in names):
            verdict.wrong = "written"
    elif lines:
        verdict.wrong = "words"
    else:
        _judge_content(verdict, shape, folder, before, source)


def _judge_content(verdict: Verdict, shape: Shape, folder: Path, before: Path, source: bytes) -> None:
    alone, found, old = read(folder, size=len(source)), read(folder), read(before)
    if alone is None or alone[: len(source)] != source:
        verdict.wrong = "wrong bytes"
    elif old is not None and (found is None or found[len(source) :] != old[len(source) :]):
        verdict.wrong, verdict.words = "wrong bytes", "behind the copied range"
    elif found is not None and _own(folder, len(source)) != source:
        verdict.wrong, verdict.words = "wrong bytes", "by its own reading"
    else:
        longest = max((place / "image.qcow2").stat().st_size for place in (folder, before))
        os.truncate(before / "image.qcow2", longest)  # what has a refcount behind the end leaks only with it
        now, then = check(folder), check(before)
        if any(one > other for one, other in zip(now, then, strict=True)):
            verdict.wrong, verdict.words = "worse", f"corruptions, leaks, check errors {then} -> {now}"
        for name in shape.snapshots:
            kept = read(before, name)
            if kept is not None and read(folder, name) != kept:
                verdict.wrong, verdict.words = "snapshot", name


def _qemu(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["qemu-img", *words], cwd=folder, capture_output=True, check=False, timeout=HUNG)


def read(folder: Path, snapshot: str | None = None, *, size: int | None = None) -> bytes | None:
    """As qemu-img reads the image there, the first 16 MiB at most; None when it does not. `size`: so many bytes,
    without what lies below it.
    """
    told = _qemu(folder, "info", "--output=json", "image.qcow2")
    if told.returncode:
        return None
    if snapshot is not None:
        words = ["-f", "qcow2", "-l", f"snapshot.name={snapshot}", "image.qcow2"]
    else:
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": "image.qcow2"}}
        whole: dict[str, object] = {"driver": "raw", "file": node if size is None else {**node, "backing": None}}
        if size is not None or json.loads(told.stdout)["virtual-size"] > _MOST_READ:
            whole["size"] = str(size or _MOST_READ)
        words = [f"json:{json.dumps(whole)}"]
    done = _qemu(folder, "convert", "-O", "raw", *words, "back.raw")
    if done.returncode:
        return None
    with (folder / "back.raw").open("rb") as back:
        content = back.read(_MOST_READ)
    (folder / "back.raw").unlink()
    return content


def check(folder: Path) -> tuple[int, int, int]:
    """Corruptions, leaks and errors of the check."""
    done = _qemu(folder, "check", "-f", "qcow2", "--output=json", "image.qcow2")
    if done.returncode in (0, 2, 3):
        told = json.loads(done.stdout)
        return told.get("corruptions", 0), told.get("leaks", 0), told.get("check-errors", 0)
    return 0, 0, 1 << 30


def _own(folder: Path, size: int) -> bytes | str:
    """As mpconv reads it."""

    async def reading() -> bytes:
        place = Place(url=str(folder / "image.qcow2"), format="qcow2")
        image = await open_source([place], OpenOptions(trust=Trust(backing=[""], data_file=[str(folder)])))
        content = bytearray(size)
        try:
            await image.read_into(0, memoryview(content))
        finally:
            await image.close()
        return bytes(content)

    try:
        return asyncio.run(reading())
    except MpconvError as error:
        return str(error)


def run_all(cases: list[Case], folder: Path, jobs: int, keep: Path | None = None) -> Iterator[Verdict]:
    """Side by side. `keep`: where the images of those that went wrong are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from side_by_side(_Run(build_all(folder), folder, keep), cases, jobs)


_NEEDED = (
    "mpconv.cli.commands.convert",
    "mpconv.jobs.copy.convert",
    "mpconv.coordinator",
    "mpconv.jobs.copy.qcow2_target",
    "mpconv.formats.qcow2.rewriter",
)


@dataclass(frozen=True, slots=True)
class _Run:
    images: dict[str, Path]
    folder: Path
    keep: Path | None

    def __call__(self, case: Case) -> Verdict:
        for name in _NEEDED:
            importlib.import_module(name)  # once for all cases
        lab = Lab(self.images, self.folder / f"lab-{os.getpid()}")
        verdict = lab.run(case)
        if verdict.wrong and self.keep is not None:
            shutil.copytree(lab.folder, self.keep / f"{case.seed}-{case.number}", dirs_exist_ok=True)
        return verdict


def main(arguments: list[str]) -> int:
    """`scripts/fuzz images`. Exits 1 when something went wrong."""
    return campaign("images", __doc__ or "", make_case, run_all, "written", arguments)
