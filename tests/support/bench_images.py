"""The images of the bench, how a target is spoilt before a run, and how a result is judged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.support.bench_rows import QCOW2_COMPRESSED

MIB = 1 << 20
TIB = 1 << 40
SPARSE_SIZE = 8 * TIB
POISON = b"\xdb" * 65536
_POISONED_PLACES = 64
_SPARSE_EXTENTS = (MIB, 4 * TIB + 12345, SPARSE_SIZE - MIB)


def make_template(path: Path, size: int, share: float) -> int:
    """A sparse file: data of random length and content in `share` of it, the rest holes. How much is data."""
    chance = random.Random(1)
    data = 0
    with path.open("wb") as file:
        file.truncate(size)
        at = 0
        while at < size:
            length = min(size - at, chance.randrange(1, 33) * MIB)
            if data < share * (at + length):
                file.seek(at)
                for _ in range(length // MIB):
                    file.write(chance.randbytes(MIB))
                file.write(chance.randbytes(length % MIB))
                data += length
            at += length
    print(f"template: {size / MIB:.0f} MiB with {data / MIB:.0f} MiB of data", file=sys.stderr)
    return data


def make_empty(path: Path, size: int) -> None:
    """Nothing but a hole."""
    with path.open("wb") as file:
        file.truncate(size)


def make_sparse(path: Path) -> None:
    """Little data, far apart."""
    make_empty(path, SPARSE_SIZE)
    with path.open("r+b") as file:
        for at in _SPARSE_EXTENTS:
            file.seek(at)
            file.write(POISON)


def make_programs(path: Path, size: int) -> None:
    """The beginning of a tar archive of /usr: program files, as a backup has them."""
    archive = ["tar", "--sort=name", "-C", "/", "-cf", "-", "usr"]
    with path.open("wb") as file, subprocess.Popen(archive, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        assert tar.stdout is not None
        while file.tell() < size:
            part = tar.stdout.read(min(MIB, size - file.tell()))
            if not part:
                sys.exit(f"bench: /usr has less than {size / MIB:.0f} MiB")
            file.write(part)
        tar.kill()


def make_qcow2(path: Path, raw: Path, fmt: str) -> None:
    """By qemu-img."""
    options = ["-c"] if fmt == QCOW2_COMPRESSED else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path], check=True)


def poison(path: Path) -> None:
    """Spoil blocks all over it, so that a run that leaves some out is found."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for number in range(_POISONED_PLACES):
            file.seek(min(size * number // _POISONED_PLACES, max(0, size - len(POISON))))
            file.write(POISON[:size])


def fill(path: Path) -> None:
    """Old data in every block."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(0, size, len(POISON)):
            file.write(POISON[: size - at])


def spoil_end(path: Path) -> None:
    """Only the last block."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(max(0, size - len(POISON)))
        file.write(POISON[:size])


def empty(path: Path) -> None:
    """Of a file that a server holds open: removed, it would keep its memory."""
    if path.exists():
        os.truncate(path, 0)


def allocated_kib(path: Path) -> int:
    """What the file occupies."""
    return path.stat().st_blocks // 2


def fault(expected: Path, result: Path, fmt: str) -> str | None:
    """qemu-img's judgement: what is wrong with an image that should hold what the raw image `expected` does."""
    qcow2 = fmt != "raw"
    if qcow2:
        done = subprocess.run(["qemu-img", "check", "-f", "qcow2", result], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"qemu-img check ends with {done.returncode}: {' '.join((done.stdout + done.stderr).split())[:500]}"
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2" if qcow2 else "raw", expected, result]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return f"the result differs from the {expected.stem}"
    return None
