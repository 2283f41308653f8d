"""Names of local files that mean another file in every process: made into names that all processes mean the same by.

Links of /proc lead to what the process has open that follows them: /proc/self/fd/3, /dev/fd/3 and /dev/stdin, and other
links to these. A worker has something else open under that number, or nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from mpconv.transports.file.beneath import realpath

_MOST_LINKS = 40
_PROC = "/proc"


def settled(path: str) -> str:
    """The same file's name for every process: `path` itself, as a rule. OSError when it has none: it is a file that was
    removed or never had a name, and who opens its number elsewhere would have another one.
    """
    if not is_of_a_process(path):
        return path
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        return path  # no image: who opens it says so
    name = realpath(path)
    try:
        there = os.stat(name)
    except OSError:
        there = None
    if there is None or (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
        raise OSError(errno.ENOENT, "it is a file without a name, which only this process has: name a file")
    return name


def is_of_a_process(path: str) -> bool:
    """Whether a link of /proc is followed on the way."""
    try:
        proc = os.stat(_PROC).st_dev
    except OSError:
        return False
    here = "/" if path.startswith("/") else ""
    left = path.split("/")[::-1]
    links = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        name = os.path.join(here, part)
        try:
            info = os.lstat(name)
            if not stat.S_ISLNK(info.st_mode):
                here = name
                continue
            if info.st_dev == proc:
                return True
            target = os.readlink(name)
        except OSError:  # nothing is there: who opens it says so
            return False
        links += 1
        if links > _MOST_LINKS:
            return False
        here = "/" if target.startswith("/") else here
        left += target.split("/")[::-1]
    return False
