"""`resume`, `status` and `report` of journals that somebody changed, case by case.

A resume that ends with 0 has made each target equal to its source. One that does not says why in one line. No file but
the targets is another one afterwards. The journals are those of real copies that were killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpconv.journal.file import peek
from mpconv.journal.records import State
from mpconv.model.errors import Fatal
from tests.mutation.campaign import Verdict, campaign, measure, side_by_side
from tests.mutation.journal_changes import change, seal_again
from tests.mutation.shapes import MiB

_SIZE = 3 * MiB + 4096
_RESEALED = 0.4
"""Of the cases: no sum stands between what was changed and who reads it. What is then written is whose who could seal
it; that it ends in time, in one line, is ours.
"""
_POINT = "has recorded it"
COPIES = {
    "raw": ["convert", "-f", "raw", "-O", "raw", "--journal", "j", "source.raw", "a.raw"],
    "qcow2": ["convert", "-f", "raw", "-O", "qcow2", "--journal", "j", "source.raw", "a.qcow2"],
    "compressed": ["convert", "-c", "-f", "raw", "-O", "qcow2", "--journal", "j", "source.raw", "a.qcow2"],
    "deploy": ["deploy", "-f", "raw", "-O", "raw", "--journal", "j", "source.raw", "a.raw", "b.raw", "c.raw"],
    "fanout": ["fanout", "--journal", "j", "plan.toml"],
}
_JOB = """[[job]]
name = "{0}"
source = "source.raw"
source_format = "raw"
target = "{0}.raw"
target_format = "raw"
"""
_PLAN = "".join(_JOB.format(name) for name in ("a", "b", "c"))


@dataclass(frozen=True, slots=True)
class Case:
    """`copy`: a key of COPIES. `changed`: whether a journal is."""

    seed: int
    number: int
    copy: str
    size: int = _SIZE
    options: tuple[str, ...] = ()
    changed: bool = True

    @property
    def shape(self) -> str:
        """For people."""
        return self.copy


def make_case(seed: int, number: int) -> Case:
    """The case of that number."""
    return Case(seed, number, random.Random(f"{seed}/{number}").choice(list(COPIES)))


def build_all(folder: Path) -> None:
    """A folder NAME for each copy that was killed, and NAME.kept with what was in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in COPIES.items():
        place = folder / name
        place.mkdir(mode=0o700)
        noise = random.Random(name).randbytes(_SIZE)
        (place / "source.raw").write_bytes(noise[: 2 * MiB] + bytes(512 * 1024) + noise[2 * MiB + 512 * 1024 :])
        (place / "bystander.raw").write_bytes(noise[::-1])
        (place / "plan.toml").write_text(_PLAN)
        killed = [sys.executable, "-m", "tests.support.crash", _POINT, "all", "mark", *words]
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(
            killed, cwd=place, env=environment, check=False, capture_output=True, start_new_session=True
        )
        assert done.returncode == -9 and (place / "j").exists(), (name, done.returncode, done.stderr)
        shutil.copytree(place, folder / f"{name}.kept")


def run_case(case: Case, folder: Path) -> Verdict:
    """One, in the place of that copy; so one at a time in a folder."""
    place = folder / case.copy
    for name in COPIES:
        _restore(folder / name, folder / f"{name}.kept")
    chance = random.Random(f"{case.seed}/{case.number}/changes")
    journals = [place / "j"] if case.copy != "fanout" else sorted((place / "j").glob("*.journal"))
    others = [folder / name / "j" for name in COPIES if name not in ("fanout", case.copy)] + journals
    verdict = Verdict(case)
    for _ in range(chance.choice([1, 1, 1, 2, 3]) if case.changed else 0):
        journal = chance.choice(journals)
        verdict.changes.append(change(chance, journal, [other for other in others if other != journal]))
    resealed = case.changed and chance.random() < _RESEALED
    if resealed:
        verdict.changes += [seal_again(journal) for journal in journals if journal.exists()]
    targets = {"a.raw", "b.raw", "c.raw", "a.qcow2"}
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file() and path.name not in targets}
    over = case.copy != "fanout" and _is_over(place / "j")
    for words in (["status", "j"], ["status", "--json", "j"], ["report", "j", "-o", "report.html"], ["resume", "j"]):
        measure(verdict, place, words)
        verdict.wrong = verdict.wrong or _words(verdict, words[0])
        if verdict.wrong:
            verdict.words = f"{' '.join(words)}: {verdict.words}"
            return verdict
    changed = [
        n for n, content in before.items() if n not in ("j", "j-wal", "j-shm") and (place / n).read_bytes() != content
    ]
    if resealed:
        return verdict  # it does what it was told to
    if changed:
        verdict.wrong, verdict.words = "written", f"{changed}"
    elif verdict.code == 0 and not over:
        written = [place / f"{name}.raw" for name in "abc"] if case.copy == "fanout" else _named(place / "j")
        for name in written:
            formats = ["-f", "raw", "-F", name.suffix[1:]]
            alike = ["qemu-img", "compare", *formats, str(name.parent / "source.raw"), str(name)]
            if subprocess.run(alike, cwd=place, check=False, capture_output=True).returncode:
                verdict.wrong, verdict.words = "wrong bytes", str(name)
                break
    return verdict


def _is_over(journal: Path) -> bool:
    """Whether it is, whole, that of another copy which was finished: it tells the truth of targets elsewhere."""
    try:
        stored, _ = peek(str(journal), whole=True)
    except Fatal:
        return False
    return stored is not None and stored.state is State.FINISHED


def _named(journal: Path) -> list[Path]:
    """The targets of a journal."""
    with contextlib.closing(sqlite3.connect(journal)) as database:
        course = json.loads(database.execute("SELECT course FROM job").fetchone()[0])
    places = [aim["place"] for aim in course["aims"]] or [course["target"]]
    return [Path(one["url"]) for one in places]


def _restore(place: Path, kept: Path) -> None:
    """The same files with what was in them: by their inodes they are known again."""
    for path in list(place.rglob("*")):
        if path.is_file() and not (kept / path.relative_to(place)).exists():
            path.unlink()
    for path in kept.rglob("*"):
        own = place / path.relative_to(kept)
        content = path.read_bytes() if path.is_file() else None
        if content is not None and (not own.exists() or own.read_bytes() != content):
            with open(os.open(own, os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:
                file.truncate(0)
                file.write(content)


def _words(verdict: Verdict, command: str) -> str:
    lines = verdict.words.splitlines()
    if "Traceback" in verdict.words or "internal error" in verdict.words:
        return "words"
    if verdict.code not in (0, 1, 2, 3):
        return "ended otherwise"
    if command == "resume" and verdict.code == 1 and not (lines and lines[-1].startswith("mpconv: ")):
        return "words"
    return ""


_NEEDED = (
    "mpconv.cli.commands.resume",
    "mpconv.cli.commands.status",
    "mpconv.cli.commands.report",
    "mpconv.jobs.copy.journaled",
    "mpconv.coordinator",
    "mpconv.jobs.copy.qcow2_target",
)


@dataclass(frozen=True, slots=True)
class _Run:
    folder: Path
    keep: Path | None

    def __call__(self, case: Case) -> Verdict:
        own = self.folder / f"lab-{os.getpid()}"
        if not own.exists():
            for name in _NEEDED:
                importlib.import_module(name)
            build_all(own)
        verdict = run_case(case, own)
        if verdict.wrong and self.keep is not None:
            shutil.copytree(own / case.copy, self.keep / f"{case.seed}-{case.number}", dirs_exist_ok=True)
        return verdict


def run_all(cases: list[Case], folder: Path, jobs: int, keep: Path | None = None) -> Iterator[Verdict]:
    """Side by side. `keep`: where the folders of those that went wrong are kept."""
    yield from side_by_side(_Run(folder, keep), cases, jobs)


def main(arguments: list[str]) -> int:
    """`scripts/fuzz journals`. Exits 1 when something went wrong."""
    return campaign("journals", __doc__ or "", make_case, run_all, "resumed", arguments)
