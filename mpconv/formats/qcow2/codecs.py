"""Compressed clusters: deflate and zstd, as QEMU reads and writes them. Pure.

deflate is ISA-L's where the package is there, several times as fast as zlib; every call releases the interpreter's
lock, so a thread per core compresses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from mpconv.model.errors import ImageError
from mpconv.model.units import MiB

_ISAL: Any
try:
    from isal import igzip_lib

    _ISAL = igzip_lib
except ImportError:  # an architecture it is not built for
    _ISAL = None
_DAMAGED: tuple[type[Exception], ...] = (zlib.error,) if _ISAL is None else (zlib.error, _ISAL.error)

_WINDOW_BITS = 12
"""QEMU's reader has a window of 4 KiB."""
_LARGEST_WINDOW = 8 * MiB
"""What every zstd decoder must take (RFC 8878); a frame that wants more gets no memory."""
_ZLIB_LEVEL = 6
_ISAL_LEVELS = 3
DEFAULT_LEVELS = {"zlib": 1, "zstd": 1}

Compress = Callable[[memoryview], bytes]


def compressor(name: str, level: int | None = None) -> Compress:
    """Bytes of one cluster -> one deflate stream or zstd frame. Of zlib's levels 1 to 3 are ISA-L's."""
    chosen = DEFAULT_LEVELS[name] if level is None else level
    if name == "zstd":
        return zstandard.ZstdCompressor(level=chosen, write_checksum=False).compress
    if _ISAL is not None and chosen <= _ISAL_LEVELS:
        lib = _ISAL

        def deflate(cluster: memoryview) -> bytes:
            made: bytes = lib.compress(cluster, chosen, lib.COMP_DEFLATE, lib.MEM_LEVEL_DEFAULT, _WINDOW_BITS)
            return made

        return deflate

    def slowly(cluster: memoryview) -> bytes:
        stream = zlib.compressobj(chosen, zlib.DEFLATED, -_WINDOW_BITS, 9)
        return stream.compress(cluster) + stream.flush()

    return slowly


def decompress_into(name: str, stored: memoryview, cluster: memoryview) -> None:
    """Fill `cluster` from what is stored, which may go on with other bytes. ImageError when it does not fill it."""
    if name == "zstd":
        _zstd_into(stored, cluster)
        return
    try:
        if _ISAL is not None:
            made = _ISAL.IgzipDecompressor(_ISAL.DECOMP_DEFLATE).decompress(stored, len(cluster))
        else:
            made = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, len(cluster))
    except _DAMAGED as error:
        raise ImageError(f"a compressed cluster is damaged: {error}") from error
    _fill(cluster, made)


def _fill(cluster: memoryview, made: bytes) -> None:
    if len(made) != len(cluster):
        raise ImageError(f"a compressed cluster is damaged: it has {len(made)} of {len(cluster)} bytes")
    cluster[:] = made


def _zstd_into(stored: memoryview, cluster: memoryview) -> None:
    """Several frames may follow each other."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    done = 0
    try:
        with decompressor.stream_reader(stored, read_across_frames=True) as reader:
            while done < len(cluster):
                count = reader.readinto(cluster[done:])
                if not count:
                    break
                done += count
    except zstandard.ZstdError as error:
        raise ImageError(f"a compressed cluster is damaged: {error}") from error
    if done < len(cluster):
        raise ImageError(f"a compressed cluster is damaged: it has {done} of {len(cluster)} bytes")
