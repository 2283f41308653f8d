"""Descriptors and memory that this process may have: the limit is raised, and what runs short is told in a line."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource

from mpconv.model.errors import Fatal, short_of
from mpconv.model.units import MiB

_ENOUGH = 1 << 20
_THREADS = 64 * MiB
"""Address space for the threads of ZeroMQ, which ends the process where it cannot start one."""


def raise_descriptors() -> int:
    """To what is allowed; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def share(part: int, least: int, most: int) -> int:
    """Of the descriptors, for strangers: one in so many, within these bounds."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else max(least, min(most, soft // part))


def need(descriptors: int) -> None:
    """Fatal unless so many more can be had, and memory for threads. ZeroMQ does not survive to find out."""
    had: list[int] = []
    try:
        had.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        while len(had) < descriptors:
            had.append(os.dup(had[0]))
        mmap.mmap(-1, _THREADS, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        memory = error.errno not in (errno.EMFILE, errno.ENFILE)
        raise Fatal(short_of(MemoryError() if memory else error) or "") from None
    finally:
        for descriptor in had:
            os.close(descriptor)
