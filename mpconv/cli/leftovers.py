"""Directories that killed runs of earlier versions have left among the temporary files: mpconv-XXXXXXXX, with a socket.

Today's runs make none: their sockets have no name in a file system.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import tempfile
import time

_NAME = re.compile(r"mpconv-[a-z0-9_]{8}")
_SOCKET = "link"
_YOUNG = 60.0
"""Seconds for which a directory may be one whose owner is about to listen."""


def remove() -> None:
    """Those of this user in which nobody listens."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for name in [entry.name for entry in entries if _NAME.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                _remove(os.path.join(tempfile.gettempdir(), name))


def _remove(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(directory)
        own = info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) == stat.S_IRWXU
        if not own or time.time() - info.st_mtime < _YOUNG:
            return
        if os.listdir(directory) == [_SOCKET] and _deserted(f"/proc/self/fd/{directory}/{_SOCKET}"):
            os.unlink(_SOCKET, dir_fd=directory)
        os.rmdir(path)
    finally:
        os.close(directory)


def _deserted(path: str) -> bool:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            return True
    return False
