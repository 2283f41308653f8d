"""The standard streams, whatever the command was started with: closed, full, or a pipe whose reader leaves.

Descriptors 0 to 2 are open before anything else is opened: what would be an image there would get what is for people.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Stream(io.FileIO):
    """After an error nothing more is written, and none is told. A reader who leaves is no error; nor is any of `quiet`
    ones: where errors are told there is no other place.
    """

    def __init__(self, descriptor: int, *, quiet: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._quiet = quiet
        self._lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Until it is written, also where the descriptor does not wait, as another process may have had it."""
        try:
            while not self._lost:
                written: int | None = super().write(data)
                if written is not None:
                    return written
                ready = select.poll()
                ready.register(self, select.POLLOUT)
                ready.poll()
        except BrokenPipeError:
            self._lost = True
        except OSError:
            self._lost = True
            if not self._quiet:
                raise
        return memoryview(data).nbytes


def prepare() -> None:
    """To be called first."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    sys.stdout = _text(1, sys.stdout, quiet=False)
    sys.stderr = _text(2, sys.stderr, quiet=True)


def _text(descriptor: int, old: TextIO | None, *, quiet: bool) -> TextIO:
    like = old if isinstance(old, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(descriptor, quiet=quiet)),
        encoding=like.encoding if like is not None else "utf-8",
        errors=like.errors if like is not None else "backslashreplace",
        line_buffering=quiet or (like is not None and (like.line_buffering or like.write_through)),
    )


def output(code: Callable[[], int]) -> int:
    """What `code` gives; what it has printed is written. Where that fails people are told, and it is not 0."""
    try:
        found = code()
    except OSError as error:
        return _told(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        return found or _told(error)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    return found


def _told(error: OSError) -> int:
    print(f"mpconv: error while writing to standard output: {os.strerror(error.errno or 0)}", file=sys.stderr)
    return 1
