"""Where in a sound qcow2 image which field lies, so that each can be changed for itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

OFFSET = 0x00FF_FFFF_FFFF_FE00
COMPRESSED = 1 << 62
_HEADER = (
    (4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8),
)  # fmt: skip
_HEADER_V3 = ((72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1))
_SNAPSHOT = ((0, 8), (8, 4), (12, 2), (14, 2), (32, 4), (36, 4), (40, 8), (48, 8))


@dataclass(slots=True)
class Anatomy:
    """Places in bytes of the file. `fields`: (place, width). `l1`, `l2`, `inactive`: entries of the active state's
    tables and of the snapshots'; `blocks`: those of the refcount table. `clusters`: where something begins.
    """

    cluster: int
    order: int
    length: int
    header: list[tuple[int, int]] = field(default_factory=list)
    extensions: list[tuple[int, int]] = field(default_factory=list)
    snapshots: list[tuple[int, int]] = field(default_factory=list)
    l1: list[int] = field(default_factory=list)
    l2: list[int] = field(default_factory=list)
    inactive: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    refcounts: dict[int, int] = field(default_factory=dict)
    """Place of the refcount block of each number."""


def dissect(image: bytes | bytearray) -> Anatomy:
    """Of an image that is sound."""
    version, bits, l1_size = (struct.unpack_from(">I", image, at)[0] for at in (4, 20, 36))
    l1, refcount_table, snapshots_at = (struct.unpack_from(">Q", image, at)[0] for at in (40, 48, 64))
    table_clusters, snapshots = struct.unpack_from(">II", image, 56)
    order, length, incompatible = 4, 72, 0
    if version == 3:
        incompatible, order, length = (
            struct.unpack_from(code, image, at)[0] for code, at in ((">Q", 72), (">I", 96), (">I", 100))
        )
    made = Anatomy(1 << bits, order, len(image))
    made.header = [*_HEADER, *(_HEADER_V3 if version == 3 else ())]
    at = length
    while at + 8 <= made.cluster:
        kind, size = struct.unpack_from(">II", image, at)
        made.extensions += [(at, 4), (at + 4, 4), *((at + 8 + part, 8) for part in range(0, size // 8 * 8, 8))][:12]
        if not kind:
            break
        at += 8 + size + -size % 8
    wide = 16 if incompatible & 16 else 8
    made.tables = [0, l1, refcount_table]
    _take_l1(made, image, l1, l1_size, wide, active=True)
    at = snapshots_at
    if snapshots:
        made.tables.append(snapshots_at)
    for _ in range(snapshots):
        made.snapshots += [(at + place, width) for place, width in _SNAPSHOT]
        other, size = struct.unpack_from(">QI", image, at)
        made.tables.append(other)
        _take_l1(made, image, other, size, wide, active=False)
        ids, names = struct.unpack_from(">HH", image, at + 12)
        at += 40 + struct.unpack_from(">I", image, at + 36)[0] + ids + names
        at += -at % 8
    for number in range(table_clusters * made.cluster // 8):
        block = struct.unpack_from(">Q", image, refcount_table + 8 * number)[0]
        if block or number < 3:
            made.blocks.append(refcount_table + 8 * number)
        if block:
            made.refcounts[number] = block
            made.tables.append(block)
    return made


def _take_l1(made: Anatomy, image: bytes | bytearray, l1: int, size: int, wide: int, *, active: bool) -> None:
    for number in range(size):
        entry = struct.unpack_from(">Q", image, l1 + 8 * number)[0]
        (made.l1 if active else made.inactive).append(l1 + 8 * number)
        l2 = entry & OFFSET
        if not l2:
            continue
        made.tables.append(l2)
        for at in range(l2, min(l2 + made.cluster, len(image)), wide):
            found = struct.unpack_from(">Q", image, at)[0]
            if found or at - l2 < 16 * wide:
                (made.l2 if active else made.inactive).append(at)
                if wide == 16:
                    (made.l2 if active else made.inactive).append(at + 8)
            if found & OFFSET and not found & COMPRESSED:
                made.data.append(found & OFFSET)
