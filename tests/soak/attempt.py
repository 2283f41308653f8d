"""The command, run once, watched from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

LIMIT = 60.0
"""Seconds that the command may take each time; a hang when it takes longer."""
_TO_VANISH = 5.0
"""Seconds for the last process after the command has ended."""


class Wrong(Exception):
    """What a case showed: a kind of `KINDS`, and the words to it."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(kind, words)
        self.kind, self.words = kind, words


WRONG_BYTES, HANG, FALSE_SUCCESS = "wrong bytes", "hang", "false success"
LEFT, UNEXPECTED, CHANGED = "processes left", "unexpected failure", "source changed"
KINDS = (WRONG_BYTES, HANG, FALSE_SUCCESS, LEFT, UNEXPECTED, CHANGED)


class Attempt:
    """The command, run once in a session of its own; its progress is followed by a thread.

    `share`: of the bytes that are complete, 1 from the last flush on; `opened`: it has come as far as to copy.
    """

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        self.deadline = time.monotonic() + LIMIT
        self.share = -1.0
        self.opened = False
        self.ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                told = json.loads(line)
                if told["phase"] in {"open", "done", "failed"}:
                    continue
                share = min(told["done"] / (told["total"] or 1), 0.999) if told["phase"] == "copy" else 1.0
                with self._changed:
                    self.opened = True
                    self.share = share
                    self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def until(self, share: float) -> bool:
        """Wait until so much is complete; False when the command ended before. Raises Wrong when it takes too long."""
        with self._changed:
            reached = self._changed.wait_for(
                lambda: self.ended or self.share >= share, max(0.0, self.deadline - time.monotonic())
            )
            if not reached:
                raise Wrong(HANG, f"at {self.share:.1%} for {LIMIT:.0f} seconds\n{self._stacks()}")
            return not self.ended

    def members(self) -> dict[int, int]:
        """pid -> parent of every process of its session that is not over."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found[int(path.name)] = int(parent)
        return found

    def nursery(self) -> list[int]:
        """The process that forks workers; none once it is over."""
        return [pid for pid, parent in self.members().items() if parent == self.process.pid]

    def workers(self) -> list[int]:
        """Workers, the oldest first."""
        nurseries = self.nursery()
        return sorted(pid for pid, parent in self.members().items() if parent in nurseries)

    def wait(self) -> int:
        """The exit code, once it has ended and nothing is left. Raises Wrong."""
        self.until(2.0)
        try:
            code = self.process.wait(max(0.1, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Wrong(HANG, f"its output is closed, but it runs\n{self._stacks()}") from None
        deadline = time.monotonic() + _TO_VANISH
        while self.members():
            if time.monotonic() > deadline:
                raise Wrong(LEFT, f"{_TO_VANISH:.0f} seconds after its end (code {code}): {self._stacks()}")
            time.sleep(0.02)
        return code

    def _stacks(self) -> str:
        told = []
        for pid, parent in self.members().items():
            with contextlib.suppress(OSError):
                where = Path(f"/proc/{pid}/wchan").read_text()
                told.append(f"pid {pid}, child of {parent}: {Path(f'/proc/{pid}/comm').read_text().strip()}, {where}")
        return "\n".join(told)

    def stop(self) -> None:
        """Kill whatever is left."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()

    def said(self) -> str:
        """All of stderr."""
        return self.log.read_text(errors="replace")
