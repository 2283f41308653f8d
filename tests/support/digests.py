"""The digest of a guest disk, computed straight from its definition."""

from __future__ import annotations

import xxhash

_BLOCK = 65536


def block_digest(number: int, block: bytes) -> int:
    """What a block counts."""
    if not block.strip(b"\0"):
        return 0
    return int.from_bytes(xxhash.xxh3_128(block, seed=number).digest(), "big")


def block_digests(content: bytes) -> dict[int, int]:
    """Block's number -> what it counts, of those that are not all zeros."""
    blocks = (content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK))
    counted = {number: block_digest(number, block) for number, block in enumerate(blocks)}
    return {number: digest for number, digest in counted.items() if digest}


def summed_up(size: int, total: int) -> str:
    """Of a guest disk of that size whose blocks count so much."""
    whole = size.to_bytes(8, "little") + (total % (1 << 128)).to_bytes(16, "little")
    return "xxh3-64k:" + xxhash.xxh3_128(whole).hexdigest()


def digest_of(content: bytes) -> str:
    """Of a guest disk with these bytes."""
    return summed_up(len(content), sum(block_digests(content).values()))


def guest_digest(content: bytes) -> str:
    """Of a raw image with these bytes: its last sector is whole."""
    return digest_of(content + bytes(-len(content) % 512))
