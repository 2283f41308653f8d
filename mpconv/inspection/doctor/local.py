"""A local file or block device: its file system, its room, who else uses it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mpconv.inspection.doctor.findings import Examination
from mpconv.model.errors import Denied, Fatal, InUse, NoSuchImage, one_line
from mpconv.model.units import human
from mpconv.transports.base import Access, Opening
from mpconv.transports.file.store import FileTransport, connect, path_of

_NETWORKED = {"nfs": "nfs://HOST/EXPORT/FILE", "nfs4": "nfs://HOST/EXPORT/FILE"}
_MOUNTS = "/proc/self/mountinfo"


async def examine(found: Examination, url: str, seconds: float) -> FileTransport | None:
    """What can be known of it without writing: facts, problems, and the file when it could be opened for reading."""
    path = path_of(url)
    _file_system(found, path)
    try:
        store = await connect(url, Access.READ, opening=Opening(locked=True))
    except NoSuchImage as error:
        folder = os.path.dirname(os.path.abspath(path))
        found.creatable = os.access(folder, os.W_OK | os.X_OK)
        if os.path.isdir(folder):
            fix = "see to the name; as a target it need not be there: convert makes it"
            found.problem("missing", error.reason, fix)
        else:
            what = f"there is no directory '{one_line(folder)}'"
            found.problem("missing-directory", what, "see to the name, make the directory (mkdir -p), or mount it")
        return None
    except Denied as error:
        what = f"{error.reason}: user {os.geteuid()} may not read it, or not look into its directory"
        found.problem("permission", what, "run as its owner or as root, or give the right (chmod, setfacl)")
        return None
    except InUse as error:
        fix = "stop the program that has it open (a running QEMU?); convert -U reads it anyhow, maybe half changed"
        found.problem("in-use", error.reason, fix)
        return None
    except Fatal as error:
        what = "it is a directory" if os.path.isdir(path) else error.reason or error.why
        found.problem("not-a-store", what, "name a regular file or a block device")
        return None
    if store.device:
        _device(found, path)
    else:
        _holes(found, path, store.size)
    return store


def _file_system(found: Examination, path: str) -> None:
    """Where a file lies, or would lie; of a block device nothing."""
    try:
        if stat.S_ISBLK(os.stat(path).st_mode):
            return
    except OSError:
        path = os.path.dirname(os.path.abspath(path))
    try:
        room, device = os.statvfs(path), os.stat(path).st_dev
    except OSError:
        return
    found.free = room.f_bavail * room.f_frsize
    kind, source = mounted(device, Path(_MOUNTS).read_text())
    on = f"{kind}, {human(found.free)} free" if kind else f"{human(found.free)} free"
    found.fact("file-system", {"type": kind or None, "free": found.free}, on)
    if kind in _NETWORKED:
        what = f"it lies on a mount of {source}: the kernel reads it over one connection, with its own limits"
        found.advise("mounted-nfs", what, f"name it as {_NETWORKED[kind]}: mpconv asks the server itself")


def mounted(device: int, mounts: str) -> tuple[str, str]:
    """Type and source of the file system on a device number, from /proc/self/mountinfo (proc(5)); empty: not there."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [wanted]:
            kind, source = after.split()[:2]
            return kind, source
    return "", ""


def _holes(found: Examination, path: str, size: int) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            tells = not size or _seeks(fd)
        finally:
            os.close(fd)
    except OSError:
        tells = False
    found.fact("hole-map", tells, "yes, by SEEK_DATA: holes are not read" if tells else "no: this file system has none")


def _seeks(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return True


def _device(found: Examination, path: str) -> None:
    number = os.stat(path).st_rdev
    queue = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    queue = queue / "queue" if (queue / "queue").is_dir() else queue.parent / "queue"
    told = {
        name: _number(queue / name) for name in ("logical_block_size", "discard_max_bytes", "write_zeroes_max_bytes")
    }
    found.fact("device", told, ", ".join(_device_words(told)) or "the kernel tells nothing of it")
    found.fact("hole-map", False, "no: the kernel tells of no holes in a block device")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            found.busy = "it is mounted, or a part of another device (LVM, RAID, dm)"


def _device_words(told: dict[str, int | None]) -> list[str]:
    words = []
    if told["logical_block_size"]:
        words.append(f"blocks of {told['logical_block_size']} bytes")
    if told["discard_max_bytes"] is not None:
        words.append("discards" if told["discard_max_bytes"] else "cannot discard")
    if told["write_zeroes_max_bytes"] is not None:
        words.append("zeroes by itself" if told["write_zeroes_max_bytes"] else "zeros are written")
    return words


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
