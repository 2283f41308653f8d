"""The steps in which an image is made: whole at the end, and refused by qemu-img at any moment before."""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path

import pytest

from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.writer import Writer
from mpconv.model.extent import Extent
from mpconv.transports.base import Buffer
from mpconv.transports.memory import MemoryTransport

KiB = 1 << 10
Step = tuple[int, bytes] | None
"""A write, or a flush."""


class Recorder(MemoryTransport):
    """Remembers what was written, and between which flushes."""

    def __init__(self) -> None:
        super().__init__("memory:recorder", bytearray(), created=True)
        self.growing = True
        self.steps: list[Step] = []

    async def write(self, offset: int, buffer: Buffer) -> None:
        self.steps.append((offset, bytes(buffer)))
        await super().write(offset, buffer)

    async def flush(self) -> None:
        self.steps.append(None)
        await super().flush()


def written(options: Qcow2Options, clusters: int) -> list[Step]:
    """The steps of an image whose every second cluster holds data."""
    size = clusters * options.cluster_size

    async def run() -> list[Step]:
        store = Recorder()
        layout = Layout(size, options)
        writer = Writer(store, layout)
        await writer.begin()
        extent = Extent(0, max(1, size))
        needs = [options.cluster_size if number % 2 else 0 for number in range(clusters)]
        places = layout.place(extent, needs)
        for place in places:
            await store.write(place, memoryview(b"\x01" * options.cluster_size))
        await store.flush()
        layout.wrote(extent, needs, places, [0xFFFFFFFF if need else 0 for need in needs])
        await writer.finish()
        return store.steps

    return asyncio.run(run())


def made(path: Path, writes: list[Step]) -> None:
    content = bytearray()
    for step in writes:
        if step is not None:
            offset, written = step
            content.extend(bytes(max(0, offset + len(written) - len(content))))
            content[offset : offset + len(written)] = written
    path.write_bytes(content)


def check(path: Path) -> int:
    command = ["qemu-img", "check", "-q", "-f", "qcow2", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode


OPTIONS = {
    "version 2": Qcow2Options(version=2, cluster_size=4 * KiB),
    "version 3": Qcow2Options(cluster_size=4 * KiB),
    "many tables": Qcow2Options(cluster_size=512, refcount_bits=64),
    "one refcount bit": Qcow2Options(cluster_size=1 * KiB, refcount_bits=1),
    "subclusters": Qcow2Options(cluster_size=16 * KiB, extended_l2=True, lazy_refcounts=True),
    "preallocated": Qcow2Options(cluster_size=4 * KiB, preallocation="metadata"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("clusters", [0, 1, 150])
def test_at_any_moment_but_the_last_it_is_refused(tmp_path: Path, options: Qcow2Options, clusters: int):
    """Whatever of the writes since the last flush has reached the disk."""
    steps = written(options, clusters)
    last = max(number for number, step in enumerate(steps) if step is not None)
    assert steps[-1] is None and steps[last - 1] is None, "the last write stands alone"
    path = tmp_path / "a.qcow2"
    chance = random.Random(1)
    flushes = [number for number, step in enumerate(steps) if step is None]
    begun = flushes[0]
    for end in [*range(begun, begun + 3), *range(max(begun, last - 12), last)]:
        flushed = max(number for number in flushes if number <= end)
        made(path, steps[: end + 1])
        assert check(path) != 0
        upcoming = steps[flushed + 1 : next(number for number in flushes if number > flushed)]
        if flushed + 1 < last:
            made(path, [*steps[:flushed], *chance.sample(upcoming, chance.randint(0, len(upcoming)))])
            assert check(path) != 0
    made(path, steps)
    assert check(path) == 0


def test_without_durability_nothing_is_flushed():
    async def run() -> list[Step]:
        store = Recorder()
        writer = Writer(store, Layout(1 << 20, Qcow2Options()), durable=False)
        await writer.begin()
        await writer.finish()
        return store.steps

    assert None not in asyncio.run(run())
