"""The header's bytes. Pure."""

from __future__ import annotations

import struct

from mpconv.formats.qcow2 import header
from mpconv.formats.qcow2.header import FEATURE_NAMES, MAGIC, V2_LENGTH, Extension, Header
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.errors import ImageError
from mpconv.model.units import align_up

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQIIB7x")
_V3_LENGTH = V2_LENGTH + _V3.size
"""With the compression type, as QEMU since 5.1 writes it."""


def header_of(options: Qcow2Options, size: int) -> Header:
    """Of an image of `size` bytes of which nothing is written yet: it has no tables, so that nobody takes it for one
    that is complete. A version 3 image is dirty besides.
    """
    incompatible = 0
    if options.version == 3:
        incompatible = header.DIRTY
        incompatible |= header.DATA_FILE if options.data_file is not None else 0
        incompatible |= header.COMPRESSION if options.compression_type == "zstd" else 0
        incompatible |= header.EXTENDED_L2 if options.extended_l2 else 0
    return Header(
        version=options.version,
        cluster_bits=options.cluster_size.bit_length() - 1,
        size=size,
        l1_size=0,
        l1_offset=0,
        refcount_table_offset=0,
        refcount_table_clusters=0,
        incompatible=incompatible,
        compatible=header.LAZY_REFCOUNTS if options.lazy_refcounts else 0,
        autoclear=header.DATA_FILE_RAW if options.data_file_raw else 0,
        refcount_order=options.refcount_order,
        compression_type=header.ZSTD if options.compression_type == "zstd" else header.ZLIB,
        backing_file=options.backing_file,
        backing_format=options.backing_fmt,
        data_file=options.data_file,
    )


def encode(made: Header) -> bytes:
    """One cluster. ImageError when its names do not fit into it."""
    extensions = _extensions(made, features=True)
    name = (made.backing_file or "").encode(errors="surrogateescape")
    length = V2_LENGTH if made.version == 2 else _V3_LENGTH
    if length + len(extensions) + len(name) > made.cluster_size:
        extensions = _extensions(made, features=False)  # as much as fits into a cluster of 512 bytes
    if length + len(extensions) + len(name) > made.cluster_size:
        raise ImageError("the names of the backing file and of the data file do not fit into the image's first cluster")
    fixed = _FIXED.pack(
        MAGIC,
        made.version,
        length + len(extensions) if name else 0,
        len(name),
        made.cluster_bits,
        made.size,
        0,
        made.l1_size,
        made.l1_offset,
        made.refcount_table_offset,
        made.refcount_table_clusters,
        made.snapshots,
        made.snapshots_offset,
    )
    if made.version == 3:
        flags = (made.incompatible, made.compatible, made.autoclear)
        fixed += _V3.pack(*flags, made.refcount_order, length, made.compression_type)
    return (fixed + extensions + name).ljust(made.cluster_size, b"\0")


def _extensions(made: Header, *, features: bool) -> bytes:
    found = b""
    if made.backing_format is not None:
        found += _extension(Extension.BACKING_FORMAT, made.backing_format.encode())
    if made.data_file is not None:
        found += _extension(Extension.DATA_FILE, made.data_file.encode(errors="surrogateescape"))
    if features and made.version == 3:
        names = (struct.pack(">BB46s", kind, bit, name.encode()) for kind, bit, name in FEATURE_NAMES)
        found += _extension(Extension.FEATURES, b"".join(names))
    return found + _extension(Extension.END, b"")


def _extension(kind: Extension, body: bytes) -> bytes:
    return struct.pack(">II", kind, len(body)) + body.ljust(align_up(len(body), 8), b"\0")
