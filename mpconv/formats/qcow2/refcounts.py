"""Refcount blocks: entries of 1 to 64 bits <-> counts. Pure."""

from __future__ import annotations

from array import array
from functools import cache

from mpconv.formats.qcow2.entries import big_endian

PLACE = ~511
"""The bits of an entry of the refcount table that say where a block lies."""
_CODES = {3: "B", 4: "H", 5: "I", 6: "Q"}


def packed(counts: array[int], order: int, per_block: int) -> bytes:
    """A block of `per_block` entries of 2^`order` bits, zeros behind the counts.

    Big-endian; entries of less than a byte from its low bits up.
    """
    counts = counts + array(counts.typecode, bytes(counts.itemsize * (per_block - len(counts))))
    if order >= 3:
        return big_endian(array(_CODES[order], counts)).tobytes()
    bits, each = 1 << order, 8 >> order
    made = bytearray(len(counts) // each)
    for place in range(each):
        for index, count in enumerate(counts[place::each]):
            made[index] |= count << (place * bits)
    return bytes(made)


def put(block: bytearray, order: int, index: int, count: int) -> None:
    """Change one entry of a block."""
    if order >= 3:
        width = 1 << (order - 3)
        block[index * width : (index + 1) * width] = count.to_bytes(width, "big")
        return
    at, place = divmod(index, 8 >> order)
    bits = 1 << order
    block[at] = block[at] & ~(((1 << bits) - 1) << place * bits) | count << place * bits


def small(block: bytes, order: int) -> bytes:
    """Refcounts of less than a byte, a byte for each."""
    each = 8 >> order
    found = bytearray(len(block) * each)
    for place in range(each):
        found[place::each] = block.translate(_fields(order, place))
    return bytes(found)


@cache
def _fields(order: int, place: int) -> bytes:
    """From a byte of several refcounts to the one in `place`, for every byte."""
    bits = 1 << order
    return bytes(value >> place * bits & (1 << bits) - 1 for value in range(256))


def not_zero(block: bytes, order: int, count: int) -> int:
    """How many of the first `count` refcounts of a block are not 0."""
    if order < 3:
        return count - small(block[: -(-count << order >> 3)], order)[:count].count(0)
    counts = array(_CODES[order], block[: count << order >> 3])
    return len(counts) - counts.count(0)
