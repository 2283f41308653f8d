"""How much room a copy of an image takes, as `qemu-img measure` tells it."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from mpconv.formats.base import Image
from mpconv.formats.layers import pieces
from mpconv.formats.qcow2.bitmaps import Bitmap
from mpconv.formats.qcow2.header import LARGEST_L1
from mpconv.formats.qcow2.image import Qcow2Image
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.errors import StatusWithdrawn, UsageError
from mpconv.model.units import SECTOR, align_up

_ENTRY = 8
"""Bytes of an entry of an L1 table, a refcount table or a bitmap's table."""


class Measure(Struct, frozen=True):
    """Bytes. `bitmaps`: None where not both sides have them."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"required size: {self.required}"
        yield f"fully allocated size: {self.fully_allocated}"
        if self.bitmaps is not None:
            yield f"bitmaps size: {self.bitmaps}"

    def facts(self) -> dict[str, object]:
        """For programs."""
        bitmaps = {} if self.bitmaps is None else {"bitmaps": self.bitmaps}
        return {**bitmaps, "required": self.required, "fully-allocated": self.fully_allocated}


def for_raw(size: int) -> Measure:
    """A raw image of `size` bytes: whole sectors, whatever is in it."""
    whole = align_up(size, SECTOR)
    return Measure(whole, whole)


def for_qcow2(size: int, options: Qcow2Options) -> Measure:
    """An empty qcow2 image of `size` bytes."""
    whole = align_up(size, options.cluster_size)
    return _measure(whole, 0, options)


async def of_image(image: Image, options: Qcow2Options) -> Measure:
    """A qcow2 copy of an image. With a backing file nobody knows what that will hold: all clusters count."""
    whole = align_up(image.size, options.cluster_size)
    needed = whole if options.backing_file is not None else await _data(image, options.cluster_size)
    bitmaps = None
    if isinstance(image, Qcow2Image) and options.version >= 3 and image.header.version >= 3:
        bitmaps = bitmaps_size(await image.read_bitmaps(), image.size, options.cluster_size)
    return _measure(whole, needed, options, bitmaps)


def check_size(size: int, options: Qcow2Options) -> None:
    """UsageError for a disk that no L1 table can describe."""
    clusters = align_up(size, options.cluster_size) // options.cluster_size
    if -(-clusters // _per_table(options)) * _ENTRY > LARGEST_L1:
        raise UsageError("The image size is too large (try using a larger cluster size)")


async def _data(image: Image, cluster_size: int) -> int:
    """The bytes of the clusters in which data lies."""
    try:
        return await _data_clusters(image, cluster_size, trusting=True)
    except StatusWithdrawn:
        return await _data_clusters(image, cluster_size, trusting=False)


async def _data_clusters(image: Image, cluster_size: int, *, trusting: bool) -> int:
    total = at = 0
    async for piece in pieces(image, 0, image.size, trusting=trusting):
        start = max(at, piece.start)
        if start < piece.end and piece.data and not piece.zero:
            at = align_up(piece.end, cluster_size)
            total += at - start + start % cluster_size
    return total


def _per_table(options: Qcow2Options) -> int:
    """Entries of an L2 table."""
    return options.cluster_size // (2 * _ENTRY if options.extended_l2 else _ENTRY)


def _measure(whole: int, needed: int, options: Qcow2Options, bitmaps: int | None = None) -> Measure:
    """Metadata counts as though all of the `whole` disk were allocated."""
    if options.preallocation in {"full", "falloc"}:
        needed = whole
    full = allocated_size(whole, options)
    return Measure(full - whole + needed, full, bitmaps)


def allocated_size(whole: int, options: Qcow2Options) -> int:
    """Bytes of an image of `whole` guest bytes, a multiple of a cluster, with every cluster allocated: the header, the
    tables and the data. QEMU's qcow2_calc_prealloc_size.
    """
    size = options.cluster_size
    tables = -(-(whole // size) // _per_table(options))
    clusters = 1 + tables + -(-tables * _ENTRY // size) + whole // size
    return (clusters + _refcount_clusters(clusters, options)) * size


def _refcount_clusters(clusters: int, options: Qcow2Options) -> int:
    """Clusters of refcount blocks and their table, which have refcounts themselves."""
    per_block = options.refcounts_per_block
    per_table = options.cluster_size // _ENTRY
    own, last = 0, -1
    while own != last:
        last = own
        blocks = -(-(clusters + own) // per_block)
        own = blocks + -(-blocks // per_table)
    return own


def bitmaps_size(bitmaps: list[Bitmap], size: int, cluster_size: int) -> int:
    """Bytes that the bitmaps of a disk take with every cluster of theirs: the bits, the tables, the directory."""
    total = 0
    for bitmap in bitmaps:
        clusters = -(-size // (bitmap.granularity * 8 * cluster_size))
        total += clusters * cluster_size + align_up(clusters * _ENTRY, cluster_size)
    return total + align_up(sum(bitmap.entry_size for bitmap in bitmaps), cluster_size)
