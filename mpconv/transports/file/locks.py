"""QEMU's locks on an image file, so that its programs and ours refuse each other (QEMU's block/file-posix.c).

A permission n is named by two bytes of the file: who locks byte 100 + n does n, who locks 200 + n lets nobody else do
n. All locks are for reading and never collide; whoever has taken his asks whether another holds the opposite of one.
They belong to the open file, so they end when it is closed or its process dies, and a second descriptor of one process
is a stranger too.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from msgspec import Struct

_READ, _WRITE, _RESIZE = 0, 1, 3
_NAMES = ("consistent read", "write", "write unchanged", "resize")
_USED, _DENIED = 100, 200
_FLOCK = "hhqqi"
_TAKEN = {errno.EAGAIN, errno.EACCES}
_HINT = "(is another process using the image?)"


class Locks(Struct, frozen=True):
    """What one does oneself and what nobody else may do meanwhile."""

    uses: frozenset[int]
    denies: frozenset[int] = frozenset()


SOURCE = Locks(frozenset({_READ}), frozenset({_WRITE, _RESIZE}))
DATA_FILE = Locks(frozenset({_READ}), frozenset({_RESIZE}))
LOOKED_AT = Locks(frozenset({_READ}))
"""What those of its commands hold that only tell of an image: on a qcow2 image as on a source, on its data file, on a
raw one."""
TARGET = Locks(frozenset({_READ, _WRITE}))
CREATING = Locks(frozenset({_WRITE, _RESIZE}), frozenset({_WRITE, _RESIZE}))
"""What `qemu-img convert` holds on its source, on its target, and on the target while that is made; only that it lets
others write meanwhile, and so cuts off what another qemu-img is writing.
"""


def hold(fd: int, locks: Locks) -> str | None:
    """Hold these and no others from now on; why not, in QEMU's words, when another program's are in the way.

    A filesystem that has no such locks is used without them.
    """
    for permission in range(len(_NAMES)):
        for base, held in ((_USED, locks.uses), (_DENIED, locks.denies)):
            byte = base + permission
            try:
                _fcntl(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK if permission in held else fcntl.F_UNLCK, byte)
            except OSError as error:
                return f"Failed to lock byte {byte} {_HINT}" if error.errno in _TAKEN else None
    for permission, name in enumerate(_NAMES):
        if permission in locks.uses and _locked(fd, _DENIED + permission):
            return f'Failed to get "{name}" lock {_HINT}'
        if permission in locks.denies and _locked(fd, _USED + permission):
            return f'Failed to get shared "{name}" lock {_HINT}'
    return None


def _locked(fd: int, byte: int) -> bool:
    """Whether another open file holds it."""
    return _fcntl(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK


def _fcntl(fd: int, command: int, kind: int, byte: int) -> int:
    answer = fcntl.fcntl(fd, command, struct.pack(_FLOCK + "4x", kind, 0, byte, 1, 0))
    found: int = struct.unpack_from(_FLOCK, answer)[0]
    return found
