"""How a qcow2 image is made. Pure."""

from __future__ import annotations

from msgspec import Struct

from mpconv.model.names import unusable
from mpconv.model.units import KiB, MiB

PREALLOCATIONS = ("off", "metadata", "falloc", "full")
COMPRESSION_TYPES = ("zlib", "zstd")
LONGEST_BACKING_NAME = 1023
"""Bytes."""

_CLUSTER_SIZE = "Cluster size must be a power of two between 512 and 2048k"
_EXTENDED_FROM = 16 * KiB
"""A subcluster, a 32nd of a cluster, is a sector at least."""


class Qcow2Options(Struct, frozen=True, kw_only=True):
    """Sizes in bytes. `version`: 2 for compat=0.10. `preallocation`: off, metadata, falloc or full.

    `compression_type`: zlib or zstd. `data_file_raw`: the external data file is kept readable as a raw image.
    """

    version: int = 3
    cluster_size: int = 64 * KiB
    preallocation: str = "off"
    lazy_refcounts: bool = False
    refcount_bits: int = 16
    compression_type: str = "zlib"
    extended_l2: bool = False
    backing_file: str | None = None
    backing_fmt: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False

    @property
    def refcount_order(self) -> int:
        """A refcount has 2^order bits."""
        return self.refcount_bits.bit_length() - 1

    @property
    def refcounts_per_block(self) -> int:
        """Host clusters whose refcounts one cluster holds."""
        return self.cluster_size * 8 // self.refcount_bits

    def refusal(self) -> str | None:
        """Why QEMU makes no such image, in its words; what it would find first (read off qemu-img 7.2)."""
        no_name = self._unusable_name()
        if no_name is not None:
            return no_name
        later = "compatibility level 1.1 {} above (use version=v3 or greater)"
        old = self.version < 3
        backed = self.backing_file is not None
        checks = [
            (old and self.extended_l2, f"Extended L2 entries are only supported with {later.format('and')}"),
            (True, self.cluster_refusal()),
            (
                self.preallocation != "off" and backed and not self.extended_l2,
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ),
            (self.backing_fmt is not None and not backed, "Backing format cannot be used without backing file"),
            (old and self.lazy_refcounts, f"Lazy refcounts only supported with {later.format('and')}"),
            (True, self.refcount_refusal("version=v3")),
            (self.data_file_raw and self.data_file is None, "data-file-raw requires data-file"),
            (self.data_file_raw and backed, "Backing file and data-file-raw cannot be used at the same time"),
            (
                old and self.data_file is not None,
                f"External data files are only supported with {later.format('and')}",
            ),
            (
                old and self.compression_type != "zlib",
                f"Non-zlib compression type is only supported with {later.format('and')}",
            ),
            (
                backed and len((self.backing_file or "").encode(errors="surrogateescape")) > LONGEST_BACKING_NAME,
                f"Could not assign backing file '{self.backing_file}' with format '{self.backing_fmt}': "
                "Invalid argument",
            ),
        ]
        return next((why for refused, why in checks if refused and why is not None), None)

    def _unusable_name(self) -> str | None:
        given = {"backing": self.backing_file, "data": self.data_file}
        found = ((what, name, unusable(name)) for what, name in given.items() if name)
        return next((f"{what} file '{name}': {why}" for what, name, why in found if why is not None), None)

    def cluster_refusal(self) -> str | None:
        """The same, of the cluster size alone."""
        if not _power_of_two(self.cluster_size, 512, 2 * MiB):
            return _CLUSTER_SIZE
        if self.extended_l2 and self.cluster_size < _EXTENDED_FROM:
            return f"Extended L2 entries are only supported with cluster sizes of at least {_EXTENDED_FROM} bytes"
        return None

    def refcount_refusal(self, newer: str) -> str | None:
        """The same, of the refcounts alone. `newer`: the option that would allow them."""
        if not _power_of_two(self.refcount_bits, 1, 64):
            return "Refcount width must be a power of two and may not exceed 64 bits"
        if self.version < 3 and self.refcount_bits != 16:
            return (
                "Different refcount widths than 16 bits require compatibility level 1.1 or above "
                f"(use {newer} or greater)"
            )
        return None


def _power_of_two(value: int, least: int, most: int) -> bool:
    return least <= value <= most and value & (value - 1) == 0
