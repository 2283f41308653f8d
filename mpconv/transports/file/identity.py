"""By what a local file or block device is known again: what the kernel tells of an open descriptor."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from pathlib import Path

from mpconv.transports.base import Fingerprint, moment, unlike

_EMPTY_PATH, _BIRTH = 0x1000, 0x800
_STATX_BYTES = 256
_MASK_AT, _BIRTH_AT = 0, 80
"""Where struct statx has what the kernel filled in, and stx_btime."""
_FINER = len("789 UTC")
_NAMES = ("wwid", "device/wwid", "device/serial", "serial", "dm/uuid", "loop/backing_file")
"""Files below /sys/dev/block/MAJOR:MINOR, the most certain first."""


def marks(fd: int) -> dict[str, str]:
    """By what it is known again while this host runs, and by processes of others: some file systems tell these of times
    in steps of 100 ns, so microseconds count.
    """
    info = os.fstat(fd)
    if stat.S_ISBLK(info.st_mode):
        return device(fd).same | {"its number": _number(info.st_rdev)}
    born = _born(fd)
    found = {"its inode": str(info.st_ino), "its device": _number(info.st_dev)}
    return found | ({"made at": f"{born[:-_FINER]} UTC"} if born else {})


def is_marked(path: str, known: dict[str, str]) -> bool:
    """Whether the file at `path` may be the one with these marks."""
    try:
        return unlike(known, marks_at(path)) is None
    except OSError:
        return False


def marks_at(path: str) -> dict[str, str]:
    """Those that are known without opening a file, or a device."""
    info = os.stat(path)
    if stat.S_ISBLK(info.st_mode):
        return {"its number": _number(info.st_rdev)}
    return {"its inode": str(info.st_ino), "its device": _number(info.st_dev)}


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def file(fd: int) -> Fingerprint:
    """A regular file. Inodes are used again, at once by some file systems: so when it was made counts too, and where
    that is not to be had, the device; with it, the device does not count, since some numbers are others after a boot.
    """
    info = os.fstat(fd)
    born = _born(fd)
    same = {"its inode": str(info.st_ino)}
    same |= {"made at": born} if born else {"its device": str(info.st_dev)}
    seconds, nanoseconds = divmod(info.st_mtime_ns, 10**9)
    return Fingerprint(same, {"its size": str(info.st_size), "modified at": moment(seconds, nanoseconds)})


def device(fd: int) -> Fingerprint:
    """A block device: what it calls itself, else its number. Nothing tells whether its bytes were changed."""
    number = os.fstat(fd).st_rdev
    where = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    size = {"its size": str(os.lseek(fd, 0, os.SEEK_END))}
    for name in _NAMES:
        try:
            told = (where / name).read_text(errors="replace").strip()
        except OSError:
            continue
        if told:
            return Fingerprint({"its name": told}, size)
    return Fingerprint({"its number": f"{os.major(number)}:{os.minor(number)}"}, size)


def _born(fd: int) -> str:
    """When the file was made; nothing where the file system does not know. Python has no call for it."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        status = ctypes.CDLL(None).statx(fd, b"", _EMPTY_PATH, _BIRTH, found)
    except AttributeError:  # a C library without it
        return ""
    if status != 0 or not struct.unpack_from("I", found, _MASK_AT)[0] & _BIRTH:
        return ""
    return moment(*struct.unpack_from("qI", found, _BIRTH_AT))
