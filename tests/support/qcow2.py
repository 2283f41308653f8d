"""Random qcow2 images, made by qemu-img and qemu-io, and read by mpconv with qemu-img as the judge.

A case is a chain of layers, the lowest first; the same seed and number make the same one. What makes it is a list of
commands, so that a case that fails can be told as a script.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve, open_source
from mpconv.model.errors import ImageError
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place, Trust

KiB, MiB = 1 << 10, 1 << 20
CLUSTERS = (512, 4 * KiB, 16 * KiB, 64 * KiB, 2 * MiB)
EXTENDED_L2_LEAST = 16 * KiB
PATTERNS = {
    "numbers": "seq -f %07.0f 1 300000",
    "others": "seq -f %07.0f 500001 700003",
    "noise": "seq 1 700000 | gzip -nc",
}
"""Files that writes are filled from, and what makes them: text that compresses, and bytes that do not."""
TRUSTING = OpenOptions(trust=Trust(backing=[""], data_file=True))
_WHOLE = 16 * MiB
"""Images up to this size are read from end to end; of larger ones what is not zero."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a chain; sizes in bytes. `data_file`: "", "file" or "raw". `steps`: qemu-io commands of each stage.

    `snapshots`: names, each made after the stage of its number. `resized`: the size from the last stage on.
    `crashed`: the last stage ends without closing the image.
    """

    name: str
    size: int
    steps: tuple[tuple[str, ...], ...]
    format: str = "qcow2"
    version: int = 3
    cluster: int = 64 * KiB
    refcount_bits: int = 16
    compression: str = ""
    extended_l2: bool = False
    lazy_refcounts: bool = False
    preallocation: str = "off"
    data_file: str = ""
    snapshots: tuple[str, ...] = ()
    resized: int | None = None
    crashed: bool = False

    @property
    def options(self) -> str:
        """What `-o` gets."""
        words = [f"compat={'0.10' if self.version == 2 else '1.1'}", f"cluster_size={self.cluster}"]
        if self.version == 3:
            words += [f"refcount_bits={self.refcount_bits}", f"lazy_refcounts={'on' if self.lazy_refcounts else 'off'}"]
            words += ["extended_l2=on"] if self.extended_l2 else []
            words += ["compression_type=zstd"] if self.compression == "zstd" else []
        words += [f"data_file={self.name}.data"] if self.data_file else []
        words += ["data_file_raw=on"] if self.data_file == "raw" else []
        words += [f"preallocation={self.preallocation}"] if self.preallocation != "off" else []
        return ",".join(words)


@dataclass(frozen=True, slots=True)
class Case:
    """A chain, and which snapshot of the topmost layer is read; None: what it holds now."""

    layers: tuple[Layer, ...]
    snapshot: str | None = None

    @property
    def top(self) -> Layer:
        """The image that is read."""
        return self.layers[-1]


def make_case(seed: int, number: int) -> Case:
    """The case of that number."""
    chance = random.Random(f"{seed}/{number}")
    depth = chance.choice([0, 0, 0, 1, 1, 2, 3])
    size = _size(chance, chance.choice(CLUSTERS))
    layers: list[Layer] = []
    for level in range(depth + 1):
        below = layers[-1] if layers else None
        base = level == 0 and depth > 0 and chance.random() < 0.4
        layers.append(_raw(chance, size) if base else _layer(chance, f"layer{level}.qcow2", size, below))
        if chance.random() < 0.4:
            size = _size(chance, layers[-1].cluster)
    top = layers[-1]
    wanted = None
    if top.snapshots and chance.random() < 0.8:
        number = chance.randrange(len(top.snapshots))
        wanted = chance.choice([str(number + 1), top.snapshots[number]])
    return Case(tuple(layers), wanted)


def _size(chance: random.Random, cluster: int) -> int:
    """Of a guest disk; awkward more often than not."""
    clusters = chance.randint(1, 300 if cluster == 512 else 40 if cluster < 2 * MiB else 3)
    match chance.randrange(10):
        case 0:
            return chance.choice([0, 512, cluster, 1024])
        case 1:
            return max(512, clusters * cluster - 512)
        case 2 if cluster < 2 * MiB:
            # into the second L2 table at least, of ordinary entries
            return cluster * cluster // 8 + clusters * cluster
        case 3 | 4:
            return clusters * cluster
        case _:
            return clusters * cluster + 512 * chance.randrange(max(1, cluster // 512))


def _raw(chance: random.Random, size: int) -> Layer:
    return Layer("base.raw", size, (tuple(_steps(chance, size, 4096, compressing=False)),), format="raw")


def _layer(chance: random.Random, name: str, size: int, below: Layer | None) -> Layer:
    version = chance.choice([2, 3, 3, 3])
    cluster = chance.choice(CLUSTERS)
    while size > 2 * MiB and cluster == 512 and size // cluster > 200_000:
        cluster = chance.choice(CLUSTERS)
    layer = Layer(name, size, (), version=version, cluster=cluster)
    if version == 3:
        layer = replace(
            layer,
            refcount_bits=chance.choice([1, 2, 4, 8, 16, 16, 32, 64]),
            extended_l2=cluster >= EXTENDED_L2_LEAST and chance.random() < 0.5,
            lazy_refcounts=chance.random() < 0.3,
            data_file=chance.choice(["", "", "", "file", "raw" if below is None else "file"]),
        )
    if not layer.data_file:
        layer = replace(layer, compression=chance.choice(["", "", "zlib", "zstd" if version == 3 else "zlib"]))
    if (below is None or layer.extended_l2) and not layer.compression and size < 64 * MiB:
        layer = replace(layer, preallocation=chance.choice(["off", "off", "metadata", "falloc"]))
    snapshots: tuple[str, ...] = ()
    resized = None
    # Compressed clusters share host clusters: their refcounts are larger.
    enough = 16 if layer.compression else 4
    if not layer.data_file and layer.refcount_bits >= enough and chance.random() < 0.4:
        # The second one's name may be the first one's id.
        snapshots = chance.choice([("first",), ("first", "1"), ("2", "1"), ("a b", "second", "third")])
    if version == 3 and chance.random() < 0.15:
        resized = size + 512 * chance.randrange(1, 2 * cluster // 512 + 2)
        if not snapshots and chance.random() < 0.5:
            resized = max(512, size // 2 // 512 * 512)
    stages = [
        tuple(_steps(chance, size, cluster, compressing=bool(layer.compression))) for _ in range(len(snapshots) + 1)
    ]
    if resized is not None:
        stages.append(tuple(_steps(chance, resized, cluster, compressing=bool(layer.compression))))
    crashed = layer.lazy_refcounts and chance.random() < 0.3
    return replace(layer, snapshots=snapshots, resized=resized, steps=tuple(stages), crashed=crashed)


def _steps(chance: random.Random, size: int, cluster: int, *, compressing: bool) -> Iterator[str]:
    """A few writes of all kinds, as qemu-io's commands."""
    sectors = size // 512
    for _ in range(chance.randint(0, 9) if sectors else 0):
        start = chance.randrange(sectors)
        if chance.random() < 0.5:
            start = start * 512 // cluster * cluster // 512
        whole = cluster // 512
        length = min(sectors - start, chance.choice([1, 2, 7, 8, whole, 3 * whole, 4 * whole]))
        length = max(1, min(length, 4 * MiB // 512))
        place = f"{start * 512} {length * 512}"
        kind = chance.choice(["write", "write", "write", "compressed", "zero", "unmapped", "discard", "same"])
        if kind == "compressed" and compressing:
            first = start * 512 // cluster * cluster
            clusters = min(chance.randint(1, 5), 8 * MiB // cluster)
            yield f"write -c -s {chance.choice(list(PATTERNS))} {first} {min(size - first, clusters * cluster)}"
        elif kind == "zero":
            yield f"write -z {place}"
        elif kind == "unmapped":
            yield f"write -z -u {place}"
        elif kind == "discard":
            yield f"discard {place}"
        elif kind == "same":
            yield f"write -P {chance.randrange(256)} {place}"
        else:
            yield f"write -s {chance.choice(list(PATTERNS))} {place}"


def commands(case: Case) -> list[list[str]]:
    """What makes the images, in the folder in which the patterns lie."""
    found: list[list[str]] = []
    below: Layer | None = None
    for layer in case.layers:
        found += _layer_commands(layer, below)
        below = layer
    return found


def _layer_commands(layer: Layer, below: Layer | None) -> Iterator[list[str]]:
    backing = [] if below is None else ["-b", below.name, "-F", below.format]
    if layer.format == "raw":
        yield ["qemu-img", "create", "-q", "-f", "raw", layer.name, str(layer.size)]
    elif layer.compression and layer.size:
        # The first stage is compressed by convert, over the backing file.
        yield ["qemu-img", "create", "-q", "-f", "qcow2", *backing, "first.qcow2", str(layer.size)]
        steps = [step.replace("write -c", "write") for step in layer.steps[0]]
        yield from _qemu_io("first.qcow2", "qcow2", steps)
        over = [] if below is None else ["-B", below.name, "-F", below.format]
        convert = ["qemu-img", "convert", "-q", "-t", "unsafe", "-c", "-O", "qcow2", "-o", layer.options, *over]
        yield [*convert, "first.qcow2", layer.name]
    else:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", layer.options, *backing]
        yield [*create, layer.name, str(layer.size)]
    for number, stage in enumerate(layer.steps):
        last = number == len(layer.steps) - 1
        if last and layer.resized is not None:
            shrink = ["--shrink"] if layer.resized < layer.size else []
            yield ["qemu-img", "resize", "-q", *shrink, layer.name, str(layer.resized)]
        yield from _qemu_io(layer.name, layer.format, [*stage, "abort"] if last and layer.crashed else stage)
        if number < len(layer.snapshots):
            yield ["qemu-img", "snapshot", "-q", "-c", layer.snapshots[number], layer.name]


def _qemu_io(name: str, fmt: str, steps: list[str] | tuple[str, ...]) -> Iterator[list[str]]:
    if steps:
        told = [word for step in steps for word in ("-c", step)]
        yield ["qemu-io", "-t", "unsafe", "-d", "unmap", "-f", fmt, *told, name]


def script(case: Case) -> str:
    """The same for a shell, with the copy that the judge makes and ours."""
    wanted = [] if case.snapshot is None else ["-l", case.snapshot]
    convert = ["convert", *wanted, "-O", "raw", case.top.name]
    lines = [f"{command} >{name}" for name, command in PATTERNS.items()]
    lines += [shlex.join(command) for command in commands(case)]
    lines += [shlex.join([program, *convert, f"{program}.raw"]) for program in ("qemu-img", "mpconv")]
    return "\n".join(lines)


def make_patterns(folder: Path) -> None:
    """The files that writes are filled from."""
    for name, command in PATTERNS.items():
        with (folder / name).open("wb") as file:
            subprocess.run(["sh", "-c", command], stdout=file, check=True)


def make(case: Case, folder: Path, patterns: Path) -> None:
    """Make the images in a folder of their own."""
    for name in PATTERNS:
        (folder / name).symlink_to(patterns / name)
    for command in commands(case):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        # qemu-io goes on after a step that fails: a compressed write where something is allocated does. To resize fails
        # where what is new cannot be zeroed.
        if done.returncode and command[0] != "qemu-io" and command[1] != "resize":
            raise RuntimeError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")


class Unreadable(Exception):
    """The judge could not read the image: a crash had damaged what was compressed."""


def judge(case: Case, folder: Path) -> Path:
    """The raw image that qemu-img makes of it."""
    copy = folder / "judge.raw"
    wanted = [] if case.snapshot is None else ["-l", case.snapshot]
    command = ["qemu-img", "convert", "-t", "unsafe", *wanted, "-O", "raw", case.top.name, copy.name]
    # There, because QEMU looks for a data file in the working directory, not beside the image.
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if "error while reading" in done.stderr:
        raise Unreadable(done.stderr)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr}")
    return copy


def place(case: Case, folder: Path) -> Place:
    """Where mpconv finds it."""
    return Place(url=str(folder / case.top.name), snapshot=case.snapshot)


async def extents_of(image: Image) -> list[Extent]:
    """The status of all of it."""
    found: list[Extent] = []
    at = 0
    while at < image.size:
        step = await image.block_status(at, image.size - at)
        assert step[0].start == at and step[-1].end <= image.size
        assert all(one.end == other.start for one, other in itertools.pairwise(step))
        found += step
        at = step[-1].end
    return found


async def differences(case: Case, folder: Path, seed: int = 0) -> list[str]:
    """What mpconv reads otherwise than qemu-img, in words."""
    try:
        copy = judge(case, folder)
    except Unreadable as error:
        return [] if await _fails(case, folder) else [f"mpconv reads what the judge cannot: {error}"]
    first, places = await open_and_resolve([place(case, folder)], TRUSTING)
    try:
        extents = await extents_of(first)
        size = first.size
    finally:
        await first.close()
    found = [] if size == copy.stat().st_size else [f"size: {size}, {copy.stat().st_size} of the judge"]
    if case.snapshot is None:
        found += await _compare_maps(case, folder, extents)
    # A worker opens what was found out, and asks nobody for trust.
    image = await open_source(places)
    try:
        return found or await _compare_bytes(image, copy, extents, random.Random(seed))
    finally:
        await image.close()


async def _fails(case: Case, folder: Path) -> bool:
    image = await open_source([place(case, folder)], TRUSTING)
    try:
        for extent in await extents_of(image):
            if extent.kind is not Kind.ZERO:
                for start, length in _pieces(extent.start, extent.end, random.Random(0)):
                    await image.read_into(start, memoryview(bytearray(length)))
    except ImageError:
        return True
    finally:
        await image.close()
    return False


async def _compare_maps(case: Case, folder: Path, extents: list[Extent]) -> list[str]:
    """Zeros where qemu-img says zeros, data where it says data; where it says both, either will do.

    It does not always ask the file for holes, where mpconv does: zeros in its data are left to the bytes to tell.
    """
    command = ["qemu-img", "map", "--output", "json", case.top.name]
    judged = json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)
    found = [
        f"map: {one.kind.name} at {max(one.start, it['start'])}, judged {it}"
        for one, it in _overlapping(extents, judged)
        if (one.kind is Kind.ZERO and not it["zero"] and not it["data"])
        or (one.kind is not Kind.ZERO and it["zero"] and not it["data"])
    ]
    image = await open_source([place(case, folder)], structs.replace(TRUSTING, keeps_backing=True))
    try:
        own = await extents_of(image)
    finally:
        await image.close()
    return found + [
        f"map with depths: {one.kind.name} at {max(one.start, it['start'])}, judged {it}"
        for one, it in _overlapping(own, judged)
        if it["present"] and (one.kind is Kind.UNALLOCATED) != (it["depth"] > 0)
    ]


def _overlapping(extents: list[Extent], judged: list[dict[str, int]]) -> Iterator[tuple[Extent, dict[str, int]]]:
    number = 0
    for extent in extents:
        while judged[number]["start"] + judged[number]["length"] <= extent.start:
            number += 1
        at = number
        while at < len(judged) and judged[at]["start"] < extent.end:
            yield extent, judged[at]
            at += 1


async def _compare_bytes(image: Image, copy: Path, extents: list[Extent], chance: random.Random) -> list[str]:
    """In pieces of any size, many at once, and at any byte."""
    with copy.open("rb") as file:
        ranges = [(0, image.size)] if image.size <= _WHOLE else [*_stored(file.fileno(), image.size), *_data(extents)]
        pieces = [piece for start, end in ranges for piece in _pieces(start, end, chance)]
        for _ in range(8 if image.size else 0):
            start = chance.randrange(image.size)
            pieces.append((start, min(image.size - start, chance.randint(1, 300_000))))

        async def wrong(start: int, length: int) -> list[str]:
            buffer = bytearray(b"\xa5" * length)
            await image.read_into(start, memoryview(buffer))
            expected = os.pread(file.fileno(), length, start)
            if buffer == expected:
                return []
            at = next(at for at in range(length) if buffer[at] != expected[at])
            return [f"byte {start + at} of a read of {length} at {start}: {buffer[at]}, {expected[at]} of the judge"]

        found: list[str] = []
        for at in range(0, len(pieces), 16):
            for told in await asyncio.gather(*(wrong(*piece) for piece in pieces[at : at + 16])):
                found += told
        short = [extent for extent in extents if extent.kind is Kind.ZERO and extent.length <= _WHOLE]
        wrong_status = [one.start for one in short if os.pread(file.fileno(), one.length, one.start).strip(b"\0")]
        return found + [f"status: zeros at {at}, but there is data" for at in wrong_status]


def _data(extents: list[Extent]) -> Iterator[tuple[int, int]]:
    return ((extent.start, extent.end) for extent in extents if extent.kind is not Kind.ZERO)


def _stored(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(at, size)


def _pieces(start: int, end: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    while start < end:
        length = min(end - start, chance.choice([512, 5000, 65536, 70_001, MiB, 2 * MiB]))
        if end - start > 4 * MiB:
            length = min(end - start, 2 * MiB)
        yield start, length
        start += length
