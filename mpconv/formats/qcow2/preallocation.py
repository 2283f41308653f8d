"""Whether an image's clusters were allocated without being written: only then do holes of its file tell anything.

QEMU's qcow2_detect_metadata_preallocation: more clusters have a refcount than the file has room for on its disk.
"""

from __future__ import annotations

from mpconv.formats.qcow2 import entries, refcounts
from mpconv.formats.qcow2.image import Qcow2Image, read
from mpconv.model.errors import Fatal


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
    for index, entry in enumerate(entries.table(await read(store, header.refcount_table_offset, blocks * 8))):
        offset = entry & refcounts.PLACE
        if offset:
            block = await read(store, offset, header.cluster_size)
            used += refcounts.not_zero(block, header.refcount_order, min(per_block, end - index * per_block))
            if used >= threshold:
                return True
    return False
