"""What can go wrong with a journal's file, as one line that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import zlib
from collections.abc import Iterator

from mpconv.model.errors import Fatal

ANEW = "remove it, and begin anew with mpconv convert"
_NO_ROOM = ": make room there, or name a place elsewhere"
_FIXES = {
    errno.ENOENT: ": see to its name",
    errno.ENOTDIR: ": see to its name",
    errno.EISDIR: ": name a file; in the directory of a fan-out there is one for each job",
    errno.EACCES: ": run as a user who may, or name another one",
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
}
"""What to do, by errno."""


@contextlib.contextmanager
def told(path: str, what: str, anew: str = ANEW) -> Iterator[None]:
    """Every way to fail as one line. `anew`: what to do when it is damaged."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        raise _fault(path, what, f"{os.strerror(number)}{_FIXES.get(number, '')}") from error
    except sqlite3.Error as error:
        fixes = {sqlite3.SQLITE_FULL: _NO_ROOM}
        fixes |= dict.fromkeys((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB), f": {anew}")
        fix = fixes.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")  # the low byte; the rest says more of it
        raise _fault(path, what, f"{error}{fix}") from error
    except (ValueError, TypeError, zlib.error) as error:
        raise _fault(path, what, f"it is damaged ({error}): {anew}") from error


def _fault(path: str, what: str, why: str) -> Fatal:
    return Fatal(f"error while {what} the journal '{path}': {why}")
