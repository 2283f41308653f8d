"""qcow2 images put together byte by byte, so that anything in them may be wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = 0x514649FB
V2_LENGTH = 72
COPIED, COMPRESSED = 1 << 63, 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A small image: header, refcount table, refcount block, L1, one L2, data, a cluster each; sizes in bytes.

    `extensions`: (type, body, the length that is told or None for the true one). `at`: what lies at which byte of the
    file instead. `file_size`: how long the file is, None: to its last byte.
    """

    version: int = 3
    backing_offset: int | None = None
    backing_name: bytes = b""
    backing_length: int | None = None
    bits: int = 9
    size: int = 64 * 512
    crypt: int = 0
    l1_size: int = 1
    l1_offset: int | None = None
    reftable_offset: int | None = None
    reftable_clusters: int = 1
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    order: int = 4
    header_length: int = 112
    compression: int = 0
    extensions: tuple[tuple[int, bytes, int | None], ...] = ()
    l1: tuple[int, ...] | None = None
    l2: tuple[int, ...] | None = None
    at: Mapping[int, bytes] = field(default_factory=dict)
    file_size: int | None = None

    @property
    def cluster(self) -> int:
        """Bytes; 512 when what the header tells is no size of a cluster."""
        return 1 << self.bits if 9 <= self.bits <= 21 else 512

    def header(self) -> bytes:
        """The first cluster, as far as it is filled."""
        body = b""
        if self.version != 2:
            body = struct.pack(
                ">QQQIIB7x",
                self.incompatible,
                self.compatible,
                self.autoclear,
                self.order,
                self.header_length,
                self.compression,
            )
        for kind, content, told in (*self.extensions, (0, b"", None)):
            body += struct.pack(">II", kind, len(content) if told is None else told) + content
            body += bytes(-len(content) % 8)
        offset = self.backing_offset
        if offset is None:
            offset = V2_LENGTH + len(body) if self.backing_name else 0
        fixed = struct.pack(
            ">IIQIIQIIQQIIQ",
            MAGIC,
            self.version,
            offset,
            len(self.backing_name) if self.backing_length is None else self.backing_length,
            self.bits,
            self.size,
            self.crypt,
            self.l1_size,
            3 * self.cluster if self.l1_offset is None else self.l1_offset,
            self.cluster if self.reftable_offset is None else self.reftable_offset,
            self.reftable_clusters,
            self.snapshots,
            self.snapshots_offset,
        )
        return fixed + body + self.backing_name

    def pieces(self) -> dict[int, bytes]:
        """What lies at which byte of the file."""
        cluster = self.cluster
        l1 = (COPIED | 4 * cluster,) if self.l1 is None else self.l1
        l2 = (COPIED | 5 * cluster,) if self.l2 is None else self.l2
        return {
            0: self.header(),
            cluster: struct.pack(">Q", 2 * cluster),
            2 * cluster: struct.pack(">6H", *[1] * 6),
            3 * cluster: struct.pack(f">{len(l1)}Q", *l1),
            4 * cluster: struct.pack(f">{len(l2)}Q", *l2),
            5 * cluster: b"\xda" * min(cluster, 65536),
            **self.at,
        }

    def write(self, path: Path) -> Path:
        """The file, with holes where nothing lies."""
        with path.open("wb") as file:
            for at, content in self.pieces().items():
                file.seek(at)
                file.write(content)
            file.truncate(self._length() if self.file_size is None else self.file_size)
        return path

    def bytes(self) -> bytearray:
        """The same in memory."""
        image = bytearray(self._length())
        for at, content in self.pieces().items():
            image[at : at + len(content)] = content
        return image[: self.file_size] if self.file_size is not None else image

    def _length(self) -> int:
        last = max(at + len(content) for at, content in self.pieces().items())
        return -(-last // self.cluster) * self.cluster


def compressed(offset: int, stored: int, bits: int) -> int:
    """The L2 entry of `stored` bytes at host byte `offset`."""
    shift = 62 - (bits - 8)
    return COMPRESSED | ((offset + stored - 1) // 512 - offset // 512) << shift | offset


def snapshot_entry(l1_offset: int, l1_size: int, name: bytes, extra: int = 16, told: int | None = None) -> bytes:
    """One entry of the snapshot table. `told`: the length of its extra data that it tells."""
    fixed = struct.pack(">QIHHIIQII", l1_offset, l1_size, 1, len(name), 0, 0, 0, 0, extra if told is None else told)
    entry = fixed + bytes(extra) + b"1" + name
    return entry + bytes(-len(entry) % 8)
