"""A campaign of changed files: many cases side by side, each a command of its own, measured; its module judges them."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from tests.mutation.shapes import KiB, MiB

MOST_MEMORY = 400 * MiB
MOST_SECONDS = 5.0
"""Of computing, all processes together, since others compute at the same time."""
HUNG = 60
_LARGEST_FILE = 1 << 40
"""Where all clusters have a refcount, the first free one lies far behind."""
KINDS = ("wrong bytes", "worse", "snapshot", "words", "written", "memory", "time", "hung", "ended otherwise")


class Case(Protocol):
    """What all of them have; `shape`: what was changed, for people."""

    @property
    def number(self) -> int: ...
    @property
    def shape(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def options(self) -> tuple[str, ...]: ...


CaseT = TypeVar("CaseT", bound=Case)


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
        if time.monotonic() - began > HUNG:
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


def side_by_side(run: Callable[[CaseT], Verdict], cases: list[CaseT], jobs: int) -> Iterator[Verdict]:
    """In processes that share no memory with this one: what it has had would count as the commands'."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, cases, chunksize=4)


def campaign(
    name: str,
    description: str,
    make_case: Callable[[int, int], CaseT],
    run_all: Callable[[list[CaseT], Path, int, Path | None], Iterator[Verdict]],
    ended_well: str,
    arguments: Sequence[str],
) -> int:
    """`scripts/fuzz NAME`. Exits 1 when something went wrong. `ended_well`: what a case is called that ended with 0."""
    parser = argparse.ArgumentParser(prog=f"scripts/fuzz {name}", description=description)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--case", type=int, metavar="N", help="this one alone, with all it says")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases at a time")
    parser.add_argument("--keep", type=Path, help="a folder for the files of what went wrong")
    chosen = parser.parse_args(arguments)
    numbers = range(chosen.first, chosen.first + chosen.cases) if chosen.case is None else [chosen.case]
    cases = [make_case(chosen.seed, number) for number in numbers]
    began = time.monotonic()
    found = dict.fromkeys(KINDS, 0)
    well = most = 0
    longest = 0.0
    with tempfile.TemporaryDirectory(prefix=f"mpconv-{name}-") as folder:
        for verdict in run_all(cases, Path(folder), chosen.jobs, chosen.keep):
            most, longest = max(most, verdict.memory), max(longest, verdict.seconds)
            well += verdict.code == 0 and not verdict.wrong
            if verdict.wrong:
                found[verdict.wrong] += 1
                print(f"{verdict}\n  again: scripts/fuzz {name} --seed {chosen.seed} --case {verdict.case.number}")
            elif chosen.case is not None:
                print(verdict)
            sys.stdout.flush()
    print(f"{len(cases)} cases, {well} {ended_well}, {time.monotonic() - began:.0f} s")
    print(f"at most {most / MiB:.0f} MiB and {longest:.1f} s of computing")
    print(", ".join(f"{count} {kind}" for kind, count in found.items()))
    return 1 if any(found.values()) else 0
