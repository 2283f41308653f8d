"""How a qcow2 image is made. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mpconv.units import KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Options:
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
