"""The digest of a guest disk: what it is made of, and how it is written. Pure.

The disk is cut into blocks of 64 KiB; the last one may be shorter. A block that is not all zeros counts by its
XXH3_128 with its number, from 0, as the seed; a block of zeros counts nothing. The digest is the XXH3_128 of the disk's
size (8 bytes) and the sum of all these numbers modulo 2^128 (16 bytes), both little endian. A sum has no order, so
whoever reads what part, and when, makes no difference; the seed is what tells apart blocks that changed places.

It finds errors, and nobody who makes them on purpose: XXH3 is no cryptographic hash.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpconv.model.units import KiB, MiB

BLOCK = 64 * KiB
REGION = 2 * MiB
"""Sums are kept for each of these, to name what differs: 8 MiB of memory for a TiB."""
WIDTH = 16
"""Bytes of a sum."""
MODULUS = 1 << 8 * WIDTH


def regions(start: int, length: int) -> range:
    """The numbers of the regions that a range of bytes touches."""
    return range(start // REGION, -(-(start + length) // REGION))


def packed(start: int, length: int, sums: Mapping[int, int]) -> bytes:
    """The sums (region -> sum) of a range, 16 bytes for each region that it touches; none if there are none."""
    if not sums:
        return b""
    return b"".join((sums.get(region, 0) % MODULUS).to_bytes(WIDTH, "little") for region in regions(start, length))


def text(size: int, total: int) -> str:
    """ "xxh3-64k:..." of a disk of `size` bytes whose blocks' sum is `total`."""
    from xxhash import xxh3_128_hexdigest  # noqa: PLC0415  (most jobs do without)

    return f"xxh3-64k:{xxh3_128_hexdigest(size.to_bytes(8, 'little') + total.to_bytes(WIDTH, 'little'))}"
