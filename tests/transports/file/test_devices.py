"""Loop devices, and filesystems that lack something: ramfs (direct I/O, fallocate) and a tmpfs that is soon full."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpconv import transports
from mpconv.model.errors import Fatal, NoSpace
from mpconv.model.extent import Extent
from mpconv.model.units import MiB
from mpconv.transports.base import Access, Opening, Transport
from mpconv.workers import buffers

SIZE = 6 * MiB + 512
DIRECT = Opening(direct=True)


def tried(*command: object) -> str:
    """What a command that only root can do answers; the test is left out where it cannot be done."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    places: list[Path] = []

    def mount(kind: str, *options: str) -> Path:
        place = tmp_path / kind
        place.mkdir()
        tried("mount", "-t", kind, *options, "none", place)
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def loop(mounted: object) -> Iterator[Callable[..., str]]:
    """Devices go before the filesystems that their files lie on."""
    devices: list[str] = []

    def attach(backing: Path, *flags: object) -> str:
        devices.append(tried("losetup", *flags, "--find", "--show", backing))
        return devices[-1]

    yield attach
    for device in devices:
        subprocess.run(["losetup", "--detach", device], check=True)


async def opened(name: object, opening: Opening = DIRECT, access: Access = Access.WRITE) -> Transport:
    return await transports.connect(str(name), access, opening=opening)


async def closed_again(device: str) -> None:
    await (await opened(device, access=Access.READ)).close()


def filled(path: Path, size: int = SIZE) -> bytearray:
    model = bytearray(random.Random(2).randbytes(size))
    path.write_bytes(model)
    return model


RANGES = [(0, 4096), (512, 8192), (1, 4095), (4095, 4098), (MiB + 512, 3 * MiB), (2 * MiB + 1, MiB), (SIZE - 513, 513)]


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("opening", [Opening(locked=True), DIRECT], ids=["cached", "direct"])
def test_a_device_does_what_a_bytearray_does(
    tmp_path: Path, loop: Callable[..., str], sector: int, opening: Opening
) -> None:
    backing = tmp_path / "backing"
    size = SIZE if sector == 512 else SIZE - 512
    model = filled(backing, size)
    device = loop(backing, "--sector-size", sector)

    async def run() -> None:
        store = await opened(device, opening)
        assert (store.size, store.creatable, store.zero_initialised) == (size, False, False)
        assert await store.block_status(512, 4096) == [Extent(512, 4096)]
        assert await store.disk_size() == 0, "as qemu-img's"
        zeroed = 0
        for number, (offset, wanted) in enumerate(RANGES):
            length = min(wanted, size - offset)
            shift = number % 2 * 7
            buffer = buffers.make(SIZE + 7)[shift : shift + length]
            buffer[:] = random.Random(number).randbytes(length)
            await store.write(offset, buffer)
            model[offset : offset + length] = buffer
            if await store.zero(offset, length):
                model[offset : offset + length] = bytes(length)
                zeroed += 1
            await store.read_into(offset, buffer)
            assert buffer == model[offset : offset + length], (offset, length)
        assert zeroed == 5, "all that have a whole block"
        assert store.zeroing == "blocks are unmapped"
        whole = buffers.make(SIZE)[:size]
        await store.read_into(0, whole)
        assert whole == model
        await store.flush()
        await store.close()

    asyncio.run(run())
    assert backing.read_bytes() == model
    assert backing.stat().st_blocks * 512 < 4 * MiB, "the room was given back"


def test_a_flush_covers_what_was_not_written_directly(tmp_path: Path, loop: Callable[..., str]) -> None:
    backing = tmp_path / "backing"
    model = filled(backing)
    device = loop(backing)

    async def run() -> None:
        store = await opened(device)
        buffer = buffers.make(8192)
        buffer[:] = b"x" * 8192
        await store.write(4095, buffer[: 4096 + 2])
        model[4095 : 4095 + 4098] = b"x" * 4098
        await store.flush()
        assert backing.read_bytes() == model
        await store.close()

    asyncio.run(run())


def test_a_device_that_cannot_unmap(mounted: Callable[..., Path], loop: Callable[..., str]) -> None:
    backing = mounted("ramfs") / "backing"
    model = filled(backing)
    device = loop(backing)

    async def run() -> None:
        store = await opened(device)
        assert not await store.zero(100, 512)
        assert store.zeroing == "blocks are unmapped", "too little to find out"
        assert await store.zero(100, MiB)
        assert store.zeroing == "the kernel zeroes blocks"
        model[100 : MiB + 100] = bytes(MiB)
        found = buffers.make(SIZE)
        await store.read_into(0, found[:SIZE])
        assert found[:SIZE] == model
        await store.close()

    asyncio.run(run())


def test_a_device_that_is_not_writable(tmp_path: Path, loop: Callable[..., str]) -> None:
    backing = tmp_path / "backing"
    filled(backing)
    device = loop(backing, "--read-only")
    with pytest.raises(Fatal) as caught:
        asyncio.run(opened(device))
    theirs = subprocess.run(["qemu-io", "-f", "raw", device], capture_output=True, text=True, input="", check=False)
    assert theirs.stderr == f"qemu-io: can't open device {device}: The device is not writable: Permission denied\n"
    assert str(caught.value) == f"Could not open '{device}': The device is not writable: Permission denied"
    asyncio.run(closed_again(device))


def test_a_device_and_a_file_are_not_copied_by_the_kernel(tmp_path: Path, loop: Callable[..., str]) -> None:
    filled(tmp_path / "backing")
    filled(tmp_path / "file")
    device = loop(tmp_path / "backing")

    async def run() -> None:
        disk, file = await opened(device), await opened(tmp_path / "file")
        assert not await disk.copy_from(file, 0, 0, MiB)
        assert not await file.copy_from(disk, 0, 0, MiB)
        await disk.close()
        await file.close()

    asyncio.run(run())


def test_a_filesystem_without_direct_io(mounted: Callable[..., Path]) -> None:
    path = mounted("ramfs") / "image"
    path.write_bytes(b"old")

    async def run() -> None:
        for size in (None, 4096):
            with pytest.raises(Fatal) as caught:
                await transports.connect(str(path), Access.WRITE, create_size=size, opening=DIRECT)
            assert str(caught.value) == f"Could not open '{path}': filesystem does not support O_DIRECT"

    asyncio.run(run())
    assert path.read_bytes() == b"old"
    theirs = subprocess.run(["qemu-io", "-t", "none", "-f", "raw", str(path)], capture_output=True, check=False)
    assert b"filesystem does not support O_DIRECT" in theirs.stderr


def test_a_filesystem_that_cannot_zero(mounted: Callable[..., Path]) -> None:
    path = mounted("ramfs") / "image"
    model = filled(path)

    async def run() -> None:
        store = await opened(path, Opening())
        assert store.zeroing == "holes are punched"
        assert await asyncio.gather(*(store.zero(at, 4096) for at in range(0, MiB, 4096))) == [False] * 256
        assert store.zeroing == "zeros are written"
        assert not await store.zero(0, 0)
        await store.close()

    asyncio.run(run())
    assert path.read_bytes() == model


@pytest.mark.parametrize(
    ("how", "what"),
    [("falloc", "Could not preallocate new data"), ("full", "Could not write zeros for preallocation")],
)
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_no_room_to_preallocate(mounted: Callable[..., Path], how: str, what: str, direct: bool) -> None:
    path = mounted("tmpfs", "-o", "size=4m") / "image"
    opening = Opening(direct=direct, locked=True, preallocation=how)

    async def run() -> None:
        with pytest.raises(NoSpace) as caught:
            await transports.connect(str(path), Access.WRITE, create_size=8 * MiB, opening=opening)
        told = f"{path}: error while converting raw: {what}: No space left on device"
        assert str(caught.value).startswith(told) and "was removed" in str(caught.value)
        assert not path.exists()

    asyncio.run(run())
    command = ["qemu-img", "create", "-f", "raw", "-o", f"preallocation={how}", str(path), "8M"]
    theirs = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert f"{what}: No space left on device" in theirs


def test_no_room_to_copy(mounted: Callable[..., Path]) -> None:
    place = mounted("tmpfs", "-o", "size=4m")
    filled(place / "source", 3 * MiB)

    async def run() -> None:
        source = await opened(place / "source", Opening(), Access.READ)
        target = await transports.connect(str(place / "target"), Access.WRITE, create_size=3 * MiB)
        with pytest.raises(NoSpace, match="No space left on device") as caught:
            await target.copy_from(source, 0, 0, 3 * MiB)
        assert (caught.value.operation, caught.value.image) == ("writing", str(place / "target"))
        await source.close()
        await target.close()

    asyncio.run(run())


def test_no_copy_between_filesystems(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    source = mounted("tmpfs") / "source"
    filled(source)
    filled(tmp_path / "target")

    async def run() -> None:
        reader, writer = await opened(source, Opening(), Access.READ), await opened(tmp_path / "target", Opening())
        assert not await writer.copy_from(reader, 0, 0, MiB)
        await reader.close()
        await writer.close()

    asyncio.run(run())
