"""Refcount blocks: entries of 1 to 64 bits <-> counts. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mpconv.formats.qcow2.entries import big_endian

_CODES = {3: "B", 4: "H", 5: "I", 6: "Q"}


def blocks(references: array[int], order: int, per_block: int) -> Iterator[bytes]:
    """The bytes of each refcount block. `order`: 2^order bits an entry; `per_block`: entries of one."""
    for first in range(0, len(references), per_block):
        part = references[first : first + per_block]
        part.extend([0] * (per_block - len(part)))
        yield packed(part, order)


def packed(counts: array[int], order: int) -> bytes:
    """Big-endian; entries of less than a byte from its low bits up."""
    if order >= 3:
        return big_endian(array(_CODES[order], counts)).tobytes()
    bits, each = 1 << order, 8 >> order
    made = bytearray(len(counts) // each)
    for place in range(each):
        for index, count in enumerate(counts[place::each]):
            made[index] |= count << (place * bits)
    return bytes(made)


def unpacked(block: bytes, order: int) -> array[int]:
    """The other way round."""
    if order >= 3:
        counts = array(_CODES[order])
        counts.frombytes(block)
        return array("Q", big_endian(counts))
    bits, each = 1 << order, 8 >> order
    found = array("Q", bytes(8 * len(block) * each))
    for place in range(each):
        mask = (1 << bits) - 1
        found[place::each] = array("Q", [byte >> (place * bits) & mask for byte in block])
    return found
