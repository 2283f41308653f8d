"""One case: the copy, its faults at their moments, and the judgement."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.attempt import CHANGED, FALSE_SUCCESS, UNEXPECTED, WRONG_BYTES, Attempt, Wrong
from tests.soak.cases import SOURCE, TARGET, Case, Fault, Kind
from tests.soak.lab import Lab, Side, write_pieces


@dataclass
class Verdict:
    """What came out of a case: nothing wrong unless `wrong` says what.

    `attempts`: how often the command ran; `fired`: faults that came; `cut`: connections that were, by relays.
    """

    case: Case
    wrong: str = ""
    words: str = ""
    attempts: int = 0
    fired: int = 0
    cut: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = f"{self.attempts}x, {self.fired} fault(s), {self.cut} cut"
        found = f"{self.wrong or 'ok':18} {self.seconds:5.1f} s {counts}"
        return f"{self.case.number:4} {found}  {self.case}"


def command(case: Case, program: list[str], names: tuple[str, str], journal: Path) -> list[str]:
    """The copy's command line."""
    words = [*program, "convert", "--progress=json", "-r", str(case.rate), "--workers", str(case.workers)]
    words += ["-f", case.source_format, "-O", case.target_format]
    words += [word for word, wanted in (("-W", not case.in_order), ("-n", case.old), ("-c", case.compress)) if wanted]
    words += ["-o", case.target_options] if case.target_options and not case.old else []
    words += ["--journal", str(journal)] if case.journal else []
    words += ["--verify"] if case.verify else []
    return [*words, *names]


@dataclass
class Run:
    """A case on its way."""

    case: Case
    lab: Lab
    folder: Path
    program: list[str]
    verdict: Verdict
    sides: dict[str, Side] = field(default_factory=dict)
    ending: list[Kind] = field(default_factory=list)
    """Faults that came in this attempt after which it need not succeed."""
    begins_anew: bool = False
    """The journal tells of no copy: there is nothing to resume."""

    def judge(self) -> None:
        """Raises Wrong."""
        with contextlib.ExitStack() as stack:
            for side in (SOURCE, TARGET):
                self.sides[side] = Side(self.case, side, self.lab, self.folder, stack)
            raw = self.folder / "guest.raw"
            write_pieces(self.case, raw)
            self.sides[SOURCE].put(raw)
            self.sides[TARGET].soil(self.case, self.folder)
            before = _digest(self.sides[SOURCE].path)
            faults = list(self.case.faults)
            while not self._attempt(faults):
                pass
            relays = [side.relay for side in self.sides.values() if side.relay is not None]
            self.verdict.cut = sum(relay.counts["cut"] for relay in relays)
            self._compare(raw)
            if _digest(self.sides[SOURCE].path) != before:
                raise Wrong(CHANGED, "the source was written to")

    def _attempt(self, faults: list[Fault]) -> bool:
        """Whether it ended well. Takes away the faults that came."""
        attempt = Attempt(self._words(), self.folder / f"stderr-{self.verdict.attempts}")
        self.verdict.attempts += 1
        self.ending = []
        try:
            cuts = [fault for fault in faults if fault.kind is Kind.REPLIES_CUT]
            for fault in cuts:
                self._fire(fault, attempt)
                faults.remove(fault)
            while faults and not self.ending and attempt.until(faults[0].at):
                self._fire(faults.pop(0), attempt)
            code = attempt.wait()
        finally:
            attempt.stop()
            for side in self.sides.values():
                if side.relay is not None:
                    side.relay.cut_replies(0, 0)
        if cuts and not attempt.opened:
            self.ending.append(Kind.REPLIES_CUT)  # who opens an image first is told at once what is wrong
        return self._accepted(code, attempt.said())

    def _words(self) -> list[str]:
        journal = self.folder / "journal"
        if self.verdict.attempts and journal.exists() and not self.begins_anew:
            return [*self.program, "resume", "--progress=json", str(journal)]
        self.begins_anew = False
        journal.unlink(missing_ok=True)
        if self.verdict.attempts and self.case.old and self.sides[TARGET].format == "qcow2":
            _judge("check", "-r", "all", "-f", "qcow2", str(self.sides[TARGET].path))  # takes away the mark and leaks
        names = (self.sides[SOURCE].name, self.sides[TARGET].name)
        return command(self.case, self.program, names, journal)

    def _fire(self, fault: Fault, attempt: Attempt) -> None:
        self.verdict.fired += 1
        relay = self.sides[fault.side].relay if fault.side else None
        match fault.kind:
            case Kind.WORKER_KILLED | Kind.WORKER_SILENT:
                number = signal.SIGKILL if fault.kind is Kind.WORKER_KILLED else signal.SIGSTOP
                workers = attempt.workers()
                if workers:
                    _send(workers[fault.worker % len(workers)], number)
            case Kind.WORKER_PAUSED:
                workers = attempt.workers()
                if workers:
                    _pause(workers[fault.worker % len(workers)], fault.seconds)
            case Kind.COMMAND_PAUSED:
                _pause(attempt.process.pid, fault.seconds)
            case Kind.NURSERY_KILLED:
                self.ending.append(fault.kind)
                for pid in attempt.nursery():
                    _send(pid, signal.SIGKILL)
            case Kind.COMMAND_KILLED | Kind.INTERRUPTED | Kind.TERMINATED:
                self.ending.append(fault.kind)
                _send(attempt.process.pid, _SIGNALS[fault.kind])
            case Kind.SERVER_KILLED:
                self.sides[fault.side].restart(fault.seconds)
            case Kind.CUT:
                assert relay is not None
                relay.cut()
            case Kind.REPLIES_CUT:
                assert relay is not None
                relay.cut_replies(fault.after, fault.times)
            case Kind.STALLED:
                assert relay is not None
                relay.stall()
                time.sleep(fault.seconds)
                relay.go_on()
            case Kind.REFUSED:
                assert relay is not None
                relay.refuse()
                time.sleep(fault.seconds)
                relay.accept()

    def _accepted(self, code: int, said: str) -> bool:
        """Whether the copy is over, and well; False: it is to be run again. Raises Wrong."""
        lines = said.splitlines()
        errors = [line for line in lines if not line.startswith("mpconv: warning: ")]
        if code == 0:
            if errors:
                raise Wrong(UNEXPECTED, f"exit 0, and it said:\n{said}")
            return True
        last = " ".join(errors)
        if len(errors) == 1 and _NEVER_BEGAN in last and self.verdict.attempts > 1:
            self.begins_anew = True
            return False
        if not any(code in _CODES.get(kind, {1}) for kind in self.ending):
            raise Wrong(
                UNEXPECTED, f"exit code {code} after {', '.join(self.ending) or 'no fault that ends it'}:\n{said}"
            )
        silent = code < 0
        if len(errors) > (0 if silent else 1) or not (silent or last.startswith("mpconv: ")):
            raise Wrong(UNEXPECTED, f"exit code {code}, and not one line of error:\n{said}")
        return False

    def _compare(self, raw: Path) -> None:
        target = self.sides[TARGET]
        if not target.path.exists():
            raise Wrong(FALSE_SUCCESS, "there is no target")
        if target.format == "qcow2":
            check = _judge("check", "-f", "qcow2", str(target.path))
            if check.returncode != 0:
                raise Wrong(FALSE_SUCCESS, f"qemu-img check: {check.returncode}\n{check.stdout}{check.stderr}")
        elif target.path.stat().st_size < self.case.size:
            raise Wrong(FALSE_SUCCESS, f"the target has {target.path.stat().st_size} of {self.case.size} bytes")
        guest = f"driver=raw,file.driver=file,file.filename={raw}"
        same = _judge("compare", "--image-opts", guest, target.image(self.case.size))
        if same.returncode != 0:
            raise Wrong(WRONG_BYTES, f"qemu-img compare: {same.stdout}{same.stderr}")


_SIGNALS = {Kind.COMMAND_KILLED: signal.SIGKILL, Kind.INTERRUPTED: signal.SIGINT, Kind.TERMINATED: signal.SIGTERM}
_CODES = {Kind.COMMAND_KILLED: {-9}, Kind.INTERRUPTED: {130}, Kind.TERMINATED: {143, -15}}
"""Of those that need not be 1; a command that is over but for its exit is ended by SIGTERM itself."""
_NEVER_BEGAN = "ever began: run mpconv convert again"


def _judge(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _pause(pid: int, seconds: float) -> None:
    _send(pid, signal.SIGSTOP)
    time.sleep(seconds)
    _send(pid, signal.SIGCONT)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def run(case: Case, lab: Lab, program: list[str]) -> Verdict:
    """Its verdict; what is not right with the soak itself raises."""
    verdict = Verdict(case)
    folder = lab.directory / f"case-{case.number}"
    folder.mkdir()
    started = time.monotonic()
    try:
        Run(case, lab, folder, program, verdict).judge()
    except Wrong as wrong:
        verdict.wrong, verdict.words = wrong.kind, wrong.words
    verdict.seconds = time.monotonic() - started
    return verdict


def recipe(case: Case) -> str:
    """The command, for a shell."""
    names = (f"<source on {case.source_place}>", f"<target on {case.target_place}>")
    return shlex.join(command(case, ["mpconv"], names, Path("journal")))


def soak(
    cases: list[Case], made: list[Lab], program: list[str], tell: Callable[[Verdict], None] = lambda verdict: None
) -> list[Verdict]:
    """All of them, as many at a time as there are labs. `tell`: called with each verdict, in the order of the cases."""
    free: queue.SimpleQueue[Lab] = queue.SimpleQueue()
    for lab in made:
        free.put(lab)

    def one(case: Case) -> Verdict:
        lab = free.get()
        try:
            return run(case, lab, program)
        finally:
            free.put(lab)

    verdicts = []
    with ThreadPoolExecutor(len(made)) as pool:
        for verdict in pool.map(one, cases):
            verdicts.append(verdict)
            tell(verdict)
    return verdicts
