"""What a local file or block device is and lies on: the disk of a partition, the file of a loop device, the disks below
a device mapper's, the disk that holds the file system. As the kernel tells it, which takes no privilege.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from mpconv.model.units import SECTOR
from mpconv.transports.identity import END, Disk, Facts, File, Key, Part

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_STATUS = struct.Struct("=QQQQQ")
"""Device, inode, device number, offset and size limit: what struct loop_info64 begins with."""
_LOOP_BYTES = 232
_MOST_LAYERS = 16
_EMPTY_PATH, _ASK_THE_SERVER = 0x1000, 0x2000
_BASIC = 0x7FF
_STATX_BYTES = 256
_KERNEL_TARGETS = Path("/sys/kernel/config/target/core")
_WORLDWIDE = ("eui.", "uuid.")
"""What NVMe tells of itself, which has no such pages."""


def facts_of(fd: int, size: int) -> Facts:
    """Of what is open, as it is now."""
    info = os.fstat(fd)
    key = _key(info)
    if stat.S_ISBLK(info.st_mode):
        parts = [*_loop(fd, info.st_rdev), *_below(info.st_rdev, Part(key))]
        files = tuple(_files(info.st_rdev))
        return Facts(key, tuple(parts), files=files, disk=_disk(info.st_rdev, size), size=size, local=True)
    holder = Part(("device", info.st_dev), whole=False)
    holders = (holder, *_below(info.st_dev, holder))
    return Facts(key, holders=holders, files=(file_of(fd),), size=size, local=True)


def file_of(fd: int) -> File:
    """Of a regular file. Where it lies on a server that is asked, not what is remembered of it: through a mount the
    kernel would say for up to a minute that nobody else has changed it.
    """
    found = ctypes.create_string_buffer(_STATX_BYTES)
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).statx(fd, b"", _EMPTY_PATH | _ASK_THE_SERVER, _BASIC, found)
    info = os.fstat(fd)
    return File(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def is_used(key: Key) -> bool:
    """Whether a program that is not this one has the file or device open, or a target of the kernel serves it; as far
    as one may know.
    """
    if any(_key_at(path) == key for path in _served_by_the_kernel()):
        return True
    return any(_key_at(path) == key for paths in _open_files() for path in paths)


def is_served_twice(size: int) -> bool:
    """The same: whether one program has one file of that size open twice, as a target that serves it twice does."""
    for paths in (_served_by_the_kernel(), *_open_files()):
        seen: set[Key] = set()
        for path in paths:
            try:
                info = os.stat(path)
            except (OSError, ValueError):
                continue
            regular = stat.S_ISREG(info.st_mode) and abs(info.st_size - size) < SECTOR
            if not regular and not stat.S_ISBLK(info.st_mode):
                continue
            if _key(info) in seen:
                return True
            seen.add(_key(info))
    return False


def _served_by_the_kernel() -> list[str]:
    return [_text(path) for path in _KERNEL_TARGETS.glob("*/*/udev_path")]


def _open_files() -> Iterator[list[str]]:
    """Of each process but this one."""
    own = str(os.getpid())
    for process in _entries("/proc"):
        if process.name.isdecimal() and process.name != own:
            yield [entry.path for entry in _entries(f"{process.path}/fd")]


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return list(found)
    except OSError:
        return []


def _key(info: os.stat_result) -> Key:
    if stat.S_ISBLK(info.st_mode):
        return ("device", info.st_rdev)
    return ("file", info.st_dev, info.st_ino)


def _key_at(path: str) -> Key | None:
    try:
        return _key(os.stat(path))
    except (OSError, ValueError):
        return None


def _where(number: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _loop(fd: int, own: int) -> list[Part]:
    """Of a loop device: its part of what is behind it, by numbers, which are right in every mount namespace. Through a
    partition of one all of the device would answer.
    """
    if (_where(own) / "partition").exists():
        return []
    try:
        told = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_BYTES))
    except OSError:
        return []
    device, inode, number, offset, limit = _LOOP_STATUS.unpack_from(told)
    key: Key = ("device", number) if number else ("file", device, inode)
    part = Part(key, offset, offset + limit if limit else END)
    return [part, *(_below(number, part) if number else [])]


def _below(number: int, part: Part, depth: int = 0) -> Iterator[Part]:
    """What `part` of a device is of others: of the disk that it is a partition of, of what it is mapped to."""
    where = _where(number)
    if depth == _MOST_LAYERS or not where.exists():
        return
    for mine in (*_of_disk(where, part), *_of_slaves(where), *_of_file(where, part)):
        yield mine
        if mine.key[0] == "device":
            assert isinstance(mine.key[1], int)
            yield from _below(mine.key[1], mine, depth + 1)


def _of_disk(where: Path, part: Part) -> list[Part]:
    if not (where / "partition").exists():
        return []
    disk = _device(where.resolve().parent)
    if disk is None:
        return []
    start, length = (_number(where / name) * SECTOR for name in ("start", "size"))
    return [Part(("device", disk), start + part.start, start + min(part.end, length), part.whole)]


def _of_slaves(where: Path) -> list[Part]:
    """Which bytes of them is not told."""
    numbers = [_device(Path(entry.path)) for entry in _entries(str(where / "slaves"))]
    return [Part(("device", number), whole=False) for number in numbers if number is not None]


def _of_file(where: Path, part: Part) -> list[Part]:
    key = _key_at(_text(where / "loop/backing_file"))
    if key is None:
        return []
    offset, limit = _number(where / "loop/offset"), _number(where / "loop/sizelimit")
    end = min(part.end, limit) if limit else part.end
    return [Part(key, offset + part.start, min(offset + end, END), part.whole)]


def _files(number: int) -> Iterator[File]:
    """The file of a loop device; on a server it may have other names."""
    try:
        fd = os.open(_text(_where(number) / "loop/backing_file"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            yield file_of(fd)
    finally:
        os.close(fd)


def _disk(number: int, size: int) -> Disk:
    """What a disk calls itself, as a LUN does: it may be one, logged in to by the kernel."""
    from mpconv.transports.iscsi import identity as iscsi_identity  # noqa: PLC0415  (files are opened sooner without)

    device = _where(number) / "device"
    named = iscsi_identity.parse(_bytes(device / "vpd_pg83"), _bytes(device / "vpd_pg80"))
    told = {_text(directory / "wwid") for directory in (device, _where(number))}
    worldwide = named.worldwide | {name for name in told if name.startswith(_WORLDWIDE)}
    return Disk(size, replace(named, worldwide=worldwide))


def _bytes(path: Path) -> bytes:
    """As long as the shortest page at least."""
    try:
        return path.read_bytes().ljust(4, b"\0")
    except OSError:
        return bytes(4)


def _text(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes().removesuffix(b"\n"))
    except OSError:
        return ""


def _number(path: Path) -> int:
    told = _text(path)
    return int(told) if told.isdecimal() else 0


def _device(directory: Path) -> int | None:
    major, _, minor = _text(directory / "dev").partition(":")
    return os.makedev(int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
