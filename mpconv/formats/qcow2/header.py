"""The header of a qcow2 image: bytes -> checked values. Pure.

The limits and the words of refusals are those of QEMU's qcow2_do_open, so that a hostile header costs neither memory
nor time: nothing that it names is read before its place and size are checked.
"""

from __future__ import annotations

import enum
import struct

from msgspec import Struct

from mpconv.model.errors import ImageError
from mpconv.model.units import MiB, align_up

MAGIC = b"QFI\xfb"
LARGEST_CLUSTER = 2 * MiB
V2_LENGTH, V3_LENGTH = 72, 104
_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_MIN_BITS, _MAX_BITS = 9, 21
_EXTENDED_L2_MIN_BITS = 14
LARGEST_L1 = 32 * MiB
_MAX_REFTABLE = 8 * MiB
_MAX_SNAPSHOTS = 65536
_SNAPSHOT_ENTRY = 40
_MAX_NAME = 1023
_LARGEST_OFFSET = (1 << 63) - 1

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
"""Incompatible features: who does not know one must not touch the image."""
LAZY_REFCOUNTS = 1
"""A compatible feature."""
BITMAPS, DATA_FILE_RAW = 1, 2
"""Autoclear features."""
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2


class Extension(enum.IntEnum):
    """What may follow the header's fields."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURES = 0x6803F857
    BITMAPS = 0x23852875
    LUKS = 0x0537BE77
    DATA_FILE = 0x44415441


ZLIB, ZSTD = 0, 1
COMPRESSION_NAMES = {ZLIB: "zlib", ZSTD: "zstd"}

FEATURE_NAMES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)
"""(type, bit, name), as QEMU writes them down in every version 3 image."""


class Header(Struct, frozen=True, kw_only=True):
    """What the header says; offsets and sizes in bytes, except `l1_size` and `snapshots`, which count entries."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: int = ZLIB
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    bitmaps: tuple[int, int, int] | None = None
    """(how many, directory size, directory offset) when the image has persistent bitmaps that count."""

    @property
    def cluster_size(self) -> int:
        """Bytes."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """L2 entries of 16 bytes with 32 subclusters each."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_entries(self) -> int:
        """Entries of one L2 table, which is one cluster."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    @property
    def external_data(self) -> bool:
        """Guest data lies in a file of its own, where guest offsets are host offsets."""
        return bool(self.incompatible & DATA_FILE)

    @property
    def compression(self) -> str:
        """The codec's name."""
        return COMPRESSION_NAMES[self.compression_type]

    @property
    def refcount_bits(self) -> int:
        """Bits of one refcount."""
        return 1 << self.refcount_order


def is_qcow2(start: bytes) -> bool:
    """By the magic number."""
    return start[:4] == MAGIC


def cluster_size_of(start: bytes) -> int:
    """How many bytes of the file's beginning `parse` wants, by its first 104. ImageError when that cannot be."""
    if len(start) < V2_LENGTH or not is_qcow2(start):
        raise ImageError("Image is not in qcow2 format")
    version: int = struct.unpack_from(">I", start, 4)[0]
    bits: int = struct.unpack_from(">I", start, 20)[0]
    if version not in (2, 3):
        raise ImageError(f"Unsupported qcow2 version {version}")
    if not _MIN_BITS <= bits <= _MAX_BITS:
        raise ImageError(f"Unsupported cluster size: 2^{bits}")
    return 1 << bits


def parse(cluster: bytes, file_size: int) -> Header:
    """`cluster`: the file's first cluster, less of a shorter file. ImageError in QEMU's words for what it refuses."""
    cluster_size = cluster_size_of(cluster)
    fixed = _FIXED.unpack_from(cluster)
    _, version, backing_offset, backing_length, bits, size, crypt, l1_size, l1_offset, *rest = fixed
    refcount_offset, refcount_clusters, snapshots, snapshots_offset = rest
    incompatible = compatible = autoclear = 0
    order, length, compression = 4, V2_LENGTH, ZLIB
    if version == 3:
        if len(cluster) < V3_LENGTH:
            raise ImageError("qcow2 header too short")
        incompatible, compatible, autoclear, order, length = _V3.unpack_from(cluster, V2_LENGTH)
        if length < V3_LENGTH:
            raise ImageError("qcow2 header too short")
        if length > V3_LENGTH and len(cluster) > V3_LENGTH:
            compression = cluster[V3_LENGTH]
    if length > cluster_size:
        raise ImageError("qcow2 header exceeds cluster size")
    if backing_offset > cluster_size:
        raise ImageError("Invalid backing file offset")
    end = backing_offset or cluster_size
    extensions = _Extensions(cluster[:end], length)
    _check_features(incompatible, compression, bits, extensions.features)
    if autoclear & DATA_FILE_RAW and not incompatible & DATA_FILE:
        raise ImageError("data-file-raw requires a data file")
    if order > 6:
        raise ImageError("Reference count entry width too large; may not exceed 64 bits")
    if crypt:
        raise ImageError("the image is encrypted, which mpconv cannot read: decrypt it with qemu-img")
    if not refcount_clusters:
        raise ImageError("Image does not contain a reference count table")
    for what, offset, entries, each, most in (
        ("Reference count table", refcount_offset, refcount_clusters << bits, 1, _MAX_REFTABLE),
        ("Snapshot table", snapshots_offset, snapshots, _SNAPSHOT_ENTRY, _MAX_SNAPSHOTS * _SNAPSHOT_ENTRY),
        ("Active L1 table", l1_offset, l1_size, 8, LARGEST_L1),
    ):
        check_table(what, offset, entries * each, most, cluster_size, file_size)
    per_l1 = cluster_size // (16 if incompatible & EXTENDED_L2 else 8) << bits
    if size > _LARGEST_OFFSET or -(-size // per_l1) * 8 > LARGEST_L1:
        raise ImageError("Image is too big")
    if l1_size < -(-size // per_l1):
        raise ImageError("L1 table is too small")
    return Header(
        version=version,
        cluster_bits=bits,
        size=size,
        l1_size=l1_size,
        l1_offset=l1_offset,
        refcount_table_offset=refcount_offset,
        refcount_table_clusters=refcount_clusters,
        snapshots=snapshots,
        snapshots_offset=snapshots_offset,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        refcount_order=order,
        compression_type=compression,
        backing_file=_backing_name(cluster, backing_offset, backing_length),
        backing_format=extensions.backing_format,
        data_file=extensions.data_file,
        bitmaps=extensions.bitmaps if autoclear & BITMAPS else None,
    )


def check_table(what: str, offset: int, length: int, most: int, cluster_size: int, file_size: int) -> None:
    """ImageError unless a table of `length` bytes can lie at `offset`."""
    if length > most:
        raise ImageError(f"{what} too large")
    if offset > _LARGEST_OFFSET - length or offset % cluster_size:
        raise ImageError(f"{what} offset invalid")
    if length and offset + length > align_up(file_size, cluster_size):
        raise ImageError(f"{what} lies beyond the end of the file, at byte {offset}: the file is cut off")


def _check_features(incompatible: int, compression: int, bits: int, names: dict[tuple[int, int], str]) -> None:
    unknown = [bit for bit in range(64) if incompatible & ~KNOWN_INCOMPATIBLE & 1 << bit]
    if unknown:
        told = ", ".join(names.get((0, bit), f"Unknown incompatible feature: {1 << bit:x}") for bit in unknown)
        raise ImageError(f"Unsupported qcow2 feature(s): {told}")
    if bool(incompatible & COMPRESSION) != (compression != ZLIB):
        raise ImageError("qcow2: Compression type incompatible feature bit must be set if and only if it is not zlib")
    if compression not in COMPRESSION_NAMES:
        raise ImageError(f"qcow2: unknown compression type: {compression}")
    if incompatible & EXTENDED_L2 and bits < _EXTENDED_L2_MIN_BITS:
        raise ImageError(
            f"Extended L2 entries are only supported with cluster sizes of at least {1 << _EXTENDED_L2_MIN_BITS} bytes"
        )


def _backing_name(cluster: bytes, offset: int, length: int) -> str | None:
    if not offset:
        return None
    name = cluster[offset : offset + length]
    if length > _MAX_NAME or len(name) < length:
        raise ImageError("Backing file name too long")
    return name.partition(b"\0")[0].decode(errors="surrogateescape") or None


class _Extensions:
    """What follows the header's fields, each with a type and a length."""

    def __init__(self, area: bytes, at: int) -> None:
        self.backing_format: str | None = None
        self.data_file: str | None = None
        self.bitmaps: tuple[int, int, int] | None = None
        self.features: dict[tuple[int, int], str] = {}
        while at + 8 <= len(area):
            kind, length = struct.unpack_from(">II", area, at)
            at += 8
            if length > len(area) - at:
                raise ImageError("Header extension too large")
            if kind == Extension.END:
                return
            self._take(kind, area[at : at + length])
            at = align_up(at + length, 8)

    def _take(self, kind: int, body: bytes) -> None:
        match kind:
            case Extension.BACKING_FORMAT:
                if len(body) >= 64:
                    raise ImageError("ERROR: ext_backing_format: len too large")
                self.backing_format = _text(body)
            case Extension.DATA_FILE:
                if len(body) > _MAX_NAME:
                    raise ImageError("the name of the external data file is too long")
                self.data_file = _text(body)
            case Extension.FEATURES:
                for at in range(0, len(body) - 47, 48):
                    self.features[(body[at], body[at + 1])] = _text(body[at + 2 : at + 48]) or ""
            case Extension.BITMAPS if len(body) == 24:
                count, _, size, offset = struct.unpack(">IIQQ", body)
                self.bitmaps = (count, size, offset)
            case Extension.LUKS:
                raise ImageError("the image is encrypted, which mpconv cannot read: decrypt it with qemu-img")


def _text(body: bytes) -> str | None:
    return body.partition(b"\0")[0].decode(errors="surrogateescape") or None
