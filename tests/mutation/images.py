"""`convert -n -O qcow2` into images that somebody changed, case by case, with qemu-img as the judge.

What ends with 0 reads as the source, as far as that went, and behind it as before; a check finds no more in it than
before, and snapshots read as they did. What does not says why in one line, and has written nothing. The same seed and
number make the same case of the same images.
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

from mpconv.errors import MpconvError
from mpconv.formats.opening import How, open_source
from mpconv.job import Place, Trust
from tests.mutation.changes import mutate
from tests.mutation.shapes import BASE, SHAPES, KiB, MiB, Shape, build_all

MOST_MEMORY = 400 * MiB
MOST_SECONDS = 5.0
"""Of computing, all processes together, since others compute at the same time."""
_HUNG = 60
_LARGEST_FILE = 1 << 40
"""Where all clusters have a refcount, the first free one lies far behind."""
_MOST_READ = 16 * MiB
SHAPES_BY_NAME = {shape.name: shape for shape in SHAPES}
KINDS = ("wrong bytes", "worse", "snapshot", "words", "written", "memory", "time", "hung", "ended otherwise")


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


@dataclass(slots=True)
class Verdict:
    """`wrong`: one of KINDS, or nothing. `memory` in bytes, `seconds` of computing."""

    case: Case
    changes: list[str] = field(default_factory=list)
    code: int = 0
    wrong: str = ""
    words: str = ""
    memory: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        case = self.case
        told = f"{case.number}: {case.shape}, {case.size} bytes {' '.join(case.options)}: exit {self.code}"
        return f"{told}, {self.wrong or 'right'}\n  {'; '.join(self.changes)}\n  {self.words.strip()}"


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


def measure(verdict: Verdict, folder: Path, words: list[str]) -> None:
    began = time.monotonic()
    with (folder / "stderr").open("wb") as stderr:
        child = os.fork()
        if not child:
            _become(folder, words, stderr.fileno())
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - began > _HUNG:
            with suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            verdict.wrong = "hung"
            return
        time.sleep(0.003)
    verdict.code = os.waitstatus_to_exitcode(status)
    verdict.words = (folder / "stderr").read_text(errors="replace")
    verdict.memory, verdict.seconds = used.ru_maxrss * KiB, used.ru_utime + used.ru_stime
    if verdict.memory > MOST_MEMORY:
        verdict.wrong = "memory"
    if verdict.seconds > MOST_SECONDS:
        verdict.wrong = "time"


def _become(folder: Path, words: list[str], stderr: int) -> NoReturn:
    """The command, in a child that has imported it already."""
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(stderr, 2)
        os.dup2(0, 1)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace")
        sys.stdout = os.fdopen(1, "w")
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        Path("/proc/self/clear_refs").write_text("5")  # its most memory, which counts on from who forked it
        sys.argv = ["mpconv", *words]
        from mpconv import cli  # noqa: PLC0415

        code = cli.main()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


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
    return subprocess.run(["qemu-img", *words], cwd=folder, capture_output=True, check=False, timeout=_HUNG)


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
        image = await open_source([place], How(trust=Trust(backing=[""], data_file=[str(folder)])))
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
    images = build_all(folder)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_load) as pool:
        yield from pool.map(_Run(images, folder, keep), cases, chunksize=4)


def _load() -> None:
    """What a command imports, once for all cases."""
    for name in ("cli.convert", "jobs.convert", "coordinator", "qcow2_target", "formats.qcow2.rewriter"):
        importlib.import_module(f"mpconv.{name}")


@dataclass(frozen=True, slots=True)
class _Run:
    images: dict[str, Path]
    folder: Path
    keep: Path | None

    def __call__(self, case: Case) -> Verdict:
        lab = Lab(self.images, self.folder / f"lab-{os.getpid()}")
        verdict = lab.run(case)
        if verdict.wrong and self.keep is not None:
            shutil.copytree(lab.folder, self.keep / f"{case.seed}-{case.number}", dirs_exist_ok=True)
        return verdict


def main(arguments: list[str]) -> int:
    """`scripts/fuzz images`. Exits 1 when something went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz images", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--case", type=int, metavar="N", help="this one alone, with all it says")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases at a time")
    parser.add_argument("--keep", type=Path, help="a folder for the images of what went wrong")
    chosen = parser.parse_args(arguments)
    numbers = range(chosen.first, chosen.first + chosen.cases) if chosen.case is None else [chosen.case]
    cases = [make_case(chosen.seed, number) for number in numbers]
    began = time.monotonic()
    found = dict.fromkeys(KINDS, 0)
    written = most = 0
    longest = 0.0
    with tempfile.TemporaryDirectory(prefix="mpconv-images-") as folder:
        for verdict in run_all(cases, Path(folder), chosen.jobs, chosen.keep):
            most, longest = max(most, verdict.memory), max(longest, verdict.seconds)
            written += verdict.code == 0
            if verdict.wrong:
                found[verdict.wrong] += 1
                print(f"{verdict}\n  again: scripts/fuzz images --seed {chosen.seed} --case {verdict.case.number}")
            elif chosen.case is not None:
                print(verdict)
            sys.stdout.flush()
    print(f"{len(cases)} cases, {written} written, {time.monotonic() - began:.0f} s")
    print(f"at most {most / MiB:.0f} MiB and {longest:.1f} s of computing")
    print(", ".join(f"{count} {kind}" for kind, count in found.items()))
    return 1 if any(found.values()) else 0
