"""Locks on local files: QEMU's own programs hold them, or run into ours."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.model.errors import InUse
from mpconv.model.units import MiB
from mpconv.transports.base import Access, Opening, Transport
from mpconv.transports.file import locks as file_locks

SIZE = 16 * MiB  # of which qemu-img copies 2 MiB at a time
LOCKED = Opening(locked=True)
HINT = "(is another process using the image?)"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(b"\xa5" * SIZE)
    return path


def connected(path: Path, access: Access, create_size: int | None = None) -> Transport:
    return asyncio.run(transports.connect(str(path), access, create_size=create_size, opening=LOCKED))


def closed(store: Transport) -> None:
    asyncio.run(store.close())


def locks(path: Path) -> set[int]:
    """The bytes of the file that somebody has locked."""
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[5].endswith(f":{path.stat().st_ino}"):
            found |= set(range(int(words[6]), int(words[7]) + 1))
    return found


def qemu(*command: object) -> str:
    """What a program of QEMU's says on stderr; nothing when it did its work."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, input="", check=False).stderr


@contextmanager
def qemu_io(path: Path, *flags: str) -> Iterator[None]:
    """qemu-io has the image open."""
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", *flags, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(len("qemu-io> ")) == b"qemu-io> "
        try:
            yield
        finally:
            process.stdin.close()


@contextmanager
def qemu_img_convert(source: Path, target: Path, *flags: str) -> Iterator[None]:
    """qemu-img is in the middle of a copy, and stays there."""
    command = ["qemu-img", "convert", *flags, "-S", "0", "-r", "64k", "-f", "raw", "-O", "raw"]
    with subprocess.Popen([*command, str(source), str(target)]) as process:
        try:
            deadline = time.monotonic() + 30
            while not target.exists() or locks(target) != {100, 101}:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield
        finally:
            process.kill()


def test_a_writer_of_qemus_keeps_a_source_from_us(image: Path) -> None:
    with qemu_io(image), pytest.raises(InUse) as caught:
        connected(image, Access.READ)
    assert str(caught.value) == f"Could not open '{image}': Failed to get shared \"write\" lock {HINT}"
    closed(connected(image, Access.READ))


def test_a_source_of_qemus_is_no_target_of_ours(image: Path, tmp_path: Path) -> None:
    with qemu_img_convert(image, tmp_path / "copy.raw"):
        with pytest.raises(InUse) as caught:
            connected(image, Access.WRITE)
        assert str(caught.value) == f"Could not open '{image}': Failed to get \"write\" lock {HINT}"
        with pytest.raises(InUse) as caught:
            connected(image, Access.WRITE, create_size=5)
        assert str(caught.value) == f'{image}: error while converting raw: Failed to get "write" lock {HINT}'
        assert image.read_bytes() == b"\xa5" * SIZE, "it was not cut off first"
        closed(connected(image, Access.READ))
    closed(connected(image, Access.WRITE, create_size=5))
    assert image.stat().st_size == 5


def test_a_target_of_qemus_is_no_source_of_ours_and_not_made_anew(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.raw"
    with qemu_img_convert(image, target):
        with pytest.raises(InUse, match='Failed to get shared "write" lock'):
            connected(target, Access.READ)
        with pytest.raises(InUse) as caught:
            connected(target, Access.WRITE, create_size=5)
        assert str(caught.value) == f'{target}: error while converting raw: Failed to get shared "write" lock {HINT}'
        assert target.stat().st_size == SIZE
        closed(connected(target, Access.WRITE))


def test_our_source_cannot_be_written_by_qemu(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(512))
    store = connected(image, Access.READ)
    assert 'Failed to get "write" lock' in qemu("qemu-io", "-f", "raw", image)
    assert 'Failed to get "write" lock' in qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", other, image)
    assert 'Failed to get "write" lock' in qemu("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, image)
    assert image.read_bytes() == b"\xa5" * SIZE
    assert qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", image, tmp_path / "copy.raw") == ""
    assert qemu("qemu-img", "map", "-f", "raw", image) == ""
    closed(store)
    assert qemu("qemu-io", "-f", "raw", image) == ""
    assert qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", other, image) == ""


@pytest.mark.parametrize("create_size", [None, SIZE])
def test_our_target_is_no_source_of_qemus(image: Path, tmp_path: Path, create_size: int | None) -> None:
    convert = ("qemu-img", "convert", "-f", "raw", "-O", "raw", image, tmp_path / "copy.raw")
    store = connected(image, Access.WRITE, create_size)
    assert 'Failed to get shared "write" lock' in qemu(*convert)
    assert qemu("qemu-img", "convert", "-U", *convert[2:]) == ""
    closed(store)
    assert qemu(*convert) == ""


@pytest.mark.parametrize("flags", [(), ("-n",)], ids=["made", "there"])
def test_the_bytes_that_are_locked_are_qemu_imgs(image: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    target = tmp_path / "target.raw"
    if flags:
        target.write_bytes(bytes(SIZE))
    with qemu_img_convert(image, target, *flags):
        theirs = [locks(image), locks(target)]
    assert [locks(image), locks(target)] == [set(), set()]
    ours = [connected(image, Access.READ), connected(target, Access.WRITE, None if flags else SIZE)]
    assert [locks(image), locks(target)] == theirs
    for store in ours:
        closed(store)
    assert [locks(image), locks(target)] == [set(), set()]


def test_while_a_file_is_made_nobody_else_makes_it(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    assert file_locks.hold(fd, file_locks.CREATING) is None
    assert 'Failed to get "write" lock' in qemu("qemu-img", "create", "-f", "raw", image, "1M")
    with pytest.raises(InUse, match='Failed to get "write" lock'):
        connected(image, Access.WRITE, create_size=5)
    assert image.read_bytes() == b"\xa5" * SIZE
    os.close(fd)
    closed(connected(image, Access.WRITE, create_size=5))


def test_workers_open_without_locks_beside_them(image: Path) -> None:
    async def run() -> None:
        locked = await transports.connect(str(image), Access.READ, opening=LOCKED)
        for access in Access:
            await (await transports.connect(str(image), access)).close()
        held = locks(image)
        assert held == {100, 201, 203}, "what another descriptor does leaves them"
        await locked.close()

    asyncio.run(run())


def test_a_refused_connection_keeps_no_locks(image: Path) -> None:
    with qemu_io(image):
        theirs = locks(image)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(InUse):
            connected(image, Access.READ)
        assert locks(image) == theirs
        assert len(os.listdir("/proc/self/fd")) == before


def test_where_there_are_no_locks_it_goes_on_without(image: Path) -> None:
    fd = os.open(image, os.O_WRONLY)  # the kernel gives such a descriptor no lock for reading
    assert file_locks.hold(fd, file_locks.TARGET) is None
    assert locks(image) == set()
    os.close(fd)


def test_a_foreign_lock_for_writing_is_in_the_way(image: Path) -> None:
    other, fd = os.open(image, os.O_RDWR), os.open(image, os.O_RDWR)
    os.lseek(other, 101, os.SEEK_SET)
    os.lockf(other, os.F_LOCK, 1)
    assert file_locks.hold(fd, file_locks.TARGET) == f"Failed to lock byte 101 {HINT}"
    os.close(other)
    assert file_locks.hold(fd, file_locks.TARGET) is None
    os.close(fd)
