"""Comparing two stores, against Python's own comparison."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.formats.raw import RawImage
from mpconv.model.extent import Extent
from mpconv.transports.memory import MemoryTransport
from mpconv.workers.comparer import Comparer, first_difference
from mpconv.workers.lease_queue import HeldLease, Reports
from tests.workers.test_copier import BUFFER, job, lease


@given(st.binary(min_size=1, max_size=300), st.integers(0, 299), st.integers(0, 255))
def test_the_first_difference(content, at, byte):
    other = bytearray(content)
    at %= len(content)
    other[at] = byte
    expected = None if content[at] == byte else at
    assert first_difference(memoryview(bytearray(content)), memoryview(other)) == expected


class Found(Reports):
    """Where the images differ."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.over = asyncio.Event()

    def want_more(self) -> None:
        pass

    def differs(self, offset: int) -> None:
        self.places.append(offset)

    def done(self, lease: HeldLease) -> None:
        self.over.set()


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (b"\x01" * 3 * BUFFER, []),
        (b"\x01" * BUFFER + b"\x02" + b"\x01" * (2 * BUFFER - 1), [BUFFER]),
        (b"\x02" + b"\x01" * (3 * BUFFER - 2) + b"\x02", [0, 3 * BUFFER - 1]),
        (b"\x01" * (BUFFER + 512), [BUFFER + 512, 2 * BUFFER]),
    ],
    ids=["equal", "one byte", "first and last", "shorter"],
)
def test_each_piece_that_differs_is_named_once(second, expected):
    async def run() -> list[int]:
        found = Found()
        first = MemoryTransport("memory:a", bytearray(b"\x01" * 3 * BUFFER), created=False)
        other = MemoryTransport("memory:b", bytearray(second), created=False)
        comparer = Comparer(job(first.size, compare=True), RawImage(first), RawImage(other), found)
        task = asyncio.create_task(comparer.run())
        await comparer.pieces.add(lease(1, Extent(0, first.size)))
        await found.over.wait()
        task.cancel()
        return found.places

    assert asyncio.run(run()) == expected
