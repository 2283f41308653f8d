"""A pseudo-terminal that a command writes to, and what is to be seen on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])")
_PATIENCE = 60.0


def screen(text: str, columns: int = 80) -> list[str]:
    """The lines that are left, by the few sequences that the bar makes use of; none may be longer than a line."""
    rows, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r\n|\r|\n)", text):
        escape = _ESCAPE.fullmatch(part)
        if part in {"\r\n", "\n"}:
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif escape is not None and escape[1] == "K":
            rows[row] = ""
        elif escape is not None and escape[1] == "A":
            row -= 1
        elif escape is None and part != "\r" and part:
            assert len(part) <= columns
            rows[row] += part
            assert len(rows[row]) <= columns, rows[row]
    return [line.rstrip() for line in rows if line.strip()]


class OnTerminal:
    """`mpconv WORDS` on a terminal of `columns`. `text`: all that it has written so far."""

    def __init__(self, directory: Path, *words: object, columns: int = 120) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        dropped = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
        env = {**{name: value for name, value in os.environ.items() if name not in dropped}, "TERM": "xterm-256color"}
        line = [sys.executable, "-m", "mpconv", *map(str, words)]
        self.process = subprocess.Popen(line, cwd=directory, stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        self.columns = columns
        self.text = ""

    def until(self, pattern: str, begin: int = 0) -> None:
        """Until what is written from the character `begin` on has the pattern."""
        deadline = time.monotonic() + _PATIENCE
        while re.search(pattern, self.text[begin:]) is None:
            assert time.monotonic() < deadline, (pattern, self.text)
            assert self._read(), (pattern, self.text)

    def end(self) -> tuple[int, list[str]]:
        """The exit code, and the lines that are left on the screen."""
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(timeout=_PATIENCE), screen(self.text, self.columns)

    def _read(self) -> bool:
        """Some more of it. False: the other side is closed."""
        if not select.select([self._master], [], [], _PATIENCE)[0]:
            raise AssertionError(f"nothing comes any more: {self.text}")
        try:
            piece = os.read(self._master, 65536)
        except OSError:
            return False
        self.text += piece.decode(errors="replace")
        return bool(piece)
