"""Files opened in a directory that they must lie in: whatever links others make meanwhile, nothing outside is opened.

By openat2(2). Where the kernel has it not, or a container forbids it, step by step without following links: then a link
that was not there when the name was resolved is refused even where it stays inside.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress

_OPENAT2 = 437
_NO_MAGIC, _NO_LINKS, _BENEATH = 0x02, 0x04, 0x08
_AT_FDCWD = -100
_UNKNOWN = {errno.ENOSYS, errno.EPERM}
_TRIES = 16
"""The kernel says EAGAIN when something was moved while it looked."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Outside(OSError):
    """It leads out of its directory."""

    def __init__(self, directory: str) -> None:
        super().__init__(errno.EXDEV, f"it leads out of the directory '{directory}', in which alone it is allowed")


def open_beneath(directory: str, path: str, flags: int) -> int:
    """A descriptor of the file at `path`. `directory`: as os.path.realpath tells it. Outside, or another OSError."""
    inside = rest(directory, path)
    if inside is None:
        raise Outside(directory)
    folder = _opened(_AT_FDCWD, directory, os.O_PATH | os.O_DIRECTORY, _NO_LINKS | _NO_MAGIC)
    try:
        return _opened(folder, inside, flags, _BENEATH | _NO_MAGIC)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise Outside(directory) from None
        raise
    finally:
        os.close(folder)


def rest(directory: str, path: str) -> str | None:
    """The name of a file as seen from the directory, without links; None: it lies elsewhere."""
    real, start = realpath(path), directory.rstrip("/") + "/"
    return real.removeprefix(start) if real.startswith(start) else None


def realpath(path: str) -> str:
    """As os.path.realpath, which gives up when a link is swapped for a file between two of its looks."""
    for _ in range(_TRIES):
        with suppress(OSError):
            return os.path.realpath(path)
    return os.path.abspath(path)


def _opened(folder: int, name: str, flags: int, resolve: int) -> int:
    try:
        return openat2(folder, name, flags, resolve)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return step_by_step(folder, name, flags)


def openat2(folder: int, name: str, flags: int, resolve: int) -> int:
    """As the system call."""
    how = _How(flags | os.O_CLOEXEC, 0, resolve)
    library = ctypes.CDLL(None, use_errno=True)
    for _ in range(_TRIES):
        fd: int = library.syscall(
            ctypes.c_long(_OPENAT2), folder, os.fsencode(name), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EAGAIN:
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def step_by_step(folder: int, name: str, flags: int) -> int:
    """The same by open(2) alone: no link is followed, and nothing leads up."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    step = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open("/", step) if name.startswith("/") else os.dup(folder)
    try:
        for part in parts[:-1]:
            above, here = here, os.open(part, step, dir_fd=here)
            os.close(above)
        last = parts[-1] if parts else "."
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
