"""Whether an image's clusters were allocated without being written: only then do holes of its file tell anything.

QEMU's qcow2_detect_metadata_preallocation: more clusters have a refcount than the file has room for on its disk.
"""

from __future__ import annotations

from array import array

from mpconv.errors import Fatal
from mpconv.formats.qcow2 import entries
from mpconv.formats.qcow2.image import Qcow2Image
from mpconv.transports.base import Transport

_TYPES = {3: "B", 4: "H", 5: "I", 6: "Q"}
_BLOCK = 0xFFFF_FFFF_FFFF_FE00


async def metadata_preallocated(image: Qcow2Image) -> bool:
    """False as well where nobody tells what the file takes up, and for refcounts that cannot be read."""
    taken = await image.store.disk_size()
    if taken is None:
        return False
    try:
        return await _more_than(image, taken // image.header.cluster_size)
    except Fatal:
        return False


async def _more_than(image: Qcow2Image, clusters: int) -> bool:
    """Whether a ninth more, two at least, have a refcount."""
    header, store = image.header, image.store
    threshold = max(clusters * 10 // 9, clusters + 2)
    end = -(-store.size // header.cluster_size)
    per_block = header.cluster_size * 8 >> header.refcount_order
    blocks = min(-(-end // per_block), header.refcount_table_clusters * header.cluster_size // 8)
    used = 0
    for index, entry in enumerate(entries.table(await _read(store, header.refcount_table_offset, blocks * 8))):
        offset = entry & _BLOCK
        if offset:
            block = await _read(store, offset, header.cluster_size)
            used += not_zero(block, header.refcount_order, min(per_block, end - index * per_block))
            if used >= threshold:
                return True
    return False


async def _read(store: Transport, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    await store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def not_zero(block: bytes, order: int, count: int) -> int:
    """How many of the first `count` refcounts of a block, of 2^`order` bits each, are not 0."""
    if order >= 3:
        counts = array(_TYPES[order], block[: count << order >> 3])
        return len(counts) - counts.count(0)
    width = 1 << order
    each = bytes(sum(byte >> at & (1 << width) - 1 != 0 for at in range(0, 8, width)) for byte in range(256))
    whole, rest = divmod(count * width, 8)
    last = each[block[whole] & (1 << rest) - 1] if rest else 0
    return sum(block[:whole].translate(each)) + last
