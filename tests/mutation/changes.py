"""What somebody may do to an image: fields set to what they must not be, tables over each other, pieces cut off.

Each change is told in words. The same seed makes the same changes of the same image.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests.mutation.anatomy import OFFSET, Anatomy, dissect

COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
_CODES = {1: ">B", 2: ">H", 4: ">I", 8: ">Q"}
_Change = Callable[[random.Random, bytearray, Anatomy], str]


def mutate(chance: random.Random, image: bytearray) -> list[str]:
    """Change it where it is; what was done."""
    found = dissect(image)
    return [chance.choices(_WAYS, _WEIGHTS)[0](chance, image, found) for _ in range(chance.choice([1, 1, 1, 2, 2, 3]))]


def _put(image: bytearray, at: int, width: int, value: int) -> str:
    value &= (1 << 8 * width) - 1
    if at + width > len(image):
        return f"nothing at byte {at}"
    old = struct.unpack_from(_CODES[width], image, at)[0]
    struct.pack_into(_CODES[width], image, at, value)
    return f"byte {at}: {old:#x} -> {value:#x}"


def _number(chance: random.Random, old: int, width: int, found: Anatomy) -> int:
    """One that a field may have instead."""
    return chance.choice(
        [
            0, 1, 2, old + 1, old - 1, old * 2, old ^ 1 << chance.randrange(8 * width),
            1 << chance.randrange(8 * width), (1 << 8 * width) - 1, found.cluster, found.length,
            chance.choice(found.tables), chance.choice(found.data or [0]), chance.getrandbits(8 * width),
            old + found.cluster, old ^ found.cluster,
        ]
    )  # fmt: skip


def _field(chance: random.Random, image: bytearray, found: Anatomy, places: list[tuple[int, int]]) -> str:
    if not places:
        return _header(chance, image, found)
    at, width = chance.choice(places)
    if at + width > len(image):
        return "nothing"
    old = struct.unpack_from(_CODES[width], image, at)[0]
    return _put(image, at, width, _number(chance, old, width, found))


def _header(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "header, " + _field(chance, image, found, found.header)


def _extension(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "extension, " + _field(chance, image, found, found.extensions)


def _snapshot(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "snapshot, " + _field(chance, image, found, found.snapshots)


def _offset(chance: random.Random, old: int, found: Anatomy) -> int:
    """Where an entry may point to instead."""
    end = -(-found.length // found.cluster) * found.cluster
    place: int = chance.choice(
        [
            chance.choice(found.tables), chance.choice(found.data or [0]), end - found.cluster, end,
            end + found.cluster * chance.randrange(1, 9), (old & OFFSET) + 512, (old & OFFSET) ^ found.cluster,
            chance.randrange(0, found.length, 512), chance.randrange(0, found.length, found.cluster),
            1 << chance.randrange(9, 56),
        ]
    )  # fmt: skip
    return place


def _entry(chance: random.Random, image: bytearray, found: Anatomy, places: list[int], *, counted: bool = False) -> str:
    places = [place for place in places if place + 8 <= len(image)]
    if not places:
        return _header(chance, image, found)
    at, other = chance.choice(places), chance.choice(places)
    old, another = struct.unpack_from(">Q", image, at)[0], struct.unpack_from(">Q", image, other)[0]
    way = chance.randrange(9)
    if way == 0:
        return _put(image, at, 8, old ^ chance.choice([COPIED, COPIED, COMPRESSED, ZERO, COPIED | ZERO]))
    if way == 1:
        return _put(image, at, 8, old ^ 1 << chance.choice([*range(9), *range(56, 64)]))
    if way in (2, 3):
        place = _offset(chance, old, found)
        told = _put(image, at, 8, old & ~OFFSET | place | (COPIED if chance.random() < 0.6 else 0))
        return told + (", " + _count(image, found, place, 2) if counted and chance.random() < 0.4 else "")
    if way in (4, 5):
        place = another & OFFSET
        told = _put(image, at, 8, another ^ chance.choice([0, COPIED, COPIED]))
        return told + (", " + _count(image, found, place, 2) if counted and chance.random() < 0.3 else "")
    if way == 6:
        return f"{_put(image, at, 8, another)}, {_put(image, other, 8, old)}"
    if way == 7:
        return _put(image, at, 8, chance.choice([0, ZERO, COPIED, ZERO | COPIED, (1 << 64) - 1, COMPRESSED]))
    return _put(image, at, 8, chance.getrandbits(64))


def _l1(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "L1, " + _entry(chance, image, found, found.l1, counted=True)


def _l2(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "L2, " + _entry(chance, image, found, found.l2, counted=True)


def _inactive(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "snapshot's table, " + _entry(chance, image, found, found.inactive or found.l2, counted=True)


def _block(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    return "refcount table, " + _entry(chance, image, found, found.blocks)


def _count(image: bytearray, found: Anatomy, place: int, count: int) -> str:
    """The refcount of the cluster at a place."""
    number, index = divmod(place // found.cluster, found.cluster * 8 >> found.order)
    block = found.refcounts.get(number)
    if block is None:
        return "no refcount"
    bits = 1 << found.order
    at = block + index * bits // 8
    if bits >= 8:
        return "refcount at " + _put(image, at, bits // 8, count)
    if at >= len(image):
        return "no refcount"
    shift = index * bits % 8
    mask = (1 << bits) - 1
    return "refcounts at " + _put(image, at, 1, image[at] & ~(mask << shift) | (count & mask) << shift)


def _refcount(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    place = chance.choice([*found.tables, *found.data, chance.randrange(found.length), found.length])
    count = chance.choice([0, 0, 1, 2, 2, 3, (1 << (1 << found.order)) - 1, chance.getrandbits(1 << found.order)])
    return _count(image, found, place, count)


def _cluster(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    """A whole one."""
    one, other = chance.choice(found.tables), chance.choice([*found.tables, *found.data])
    size = found.cluster
    first, second = bytes(image[one : one + size]), bytes(image[other : other + size])
    if len(first) < size or len(second) < size:
        return "nothing"
    way = chance.randrange(4)
    if way == 0:
        image[one : one + size], image[other : other + size] = second, first
        return f"swapped the clusters at {one} and {other}"
    if way == 1:
        image[one : one + size] = second
        return f"the cluster at {one} is that at {other}"
    image[one : one + size] = (b"\0" if way == 2 else b"\xff") * size
    return f"the cluster at {one} is {'zeros' if way == 2 else 'ones'}"


def _length(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    clusters = -(-found.length // found.cluster)
    length = chance.choice(
        [chance.randrange(clusters) * found.cluster, chance.randrange(found.length), found.length - 512,
         found.length + found.cluster * 3, found.length + 100, (clusters - 1) * found.cluster]
    )  # fmt: skip
    del image[length:]
    image += bytes(length - len(image))
    return f"{length} bytes long"


def _byte(chance: random.Random, image: bytearray, found: Anatomy) -> str:
    at = chance.choice(found.tables) + chance.randrange(min(found.cluster, 1024))
    return _put(image, at, 1, chance.getrandbits(8))


_WEIGHTED: list[tuple[_Change, int]] = [
    (_header, 4), (_extension, 1), (_snapshot, 2), (_l1, 4), (_l2, 8), (_inactive, 3), (_block, 3), (_refcount, 5),
    (_cluster, 2), (_length, 2), (_byte, 2),
]  # fmt: skip
_WAYS = [way for way, _ in _WEIGHTED]
_WEIGHTS = [weight for _, weight in _WEIGHTED]
