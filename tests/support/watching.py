"""Copies that are watched: started, and asked what they serve."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class Watched:
    """`mpconv WORDS` as a process of its own. `urls`: those that it has printed, of `count` servers."""

    def __init__(self, directory: Path, *words: object, count: int = 1) -> None:
        line = [sys.executable, "-m", "mpconv", *map(str, words)]
        self.process = subprocess.Popen(line, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said: list[str] = []
        self.urls: list[str] = []
        for text in self.process.stderr:
            self.said.append(text)
            self.urls += re.findall(r"http://\S+", text)
            if len(self.urls) == count:
                return
        raise AssertionError(f"it ended before: {self.said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str]:
        """Wait for its end: the exit code, and all that it said to people."""
        _, more = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.said) + more
