"""Cache modes, by qemu-img's names. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheMode:
    """`direct`: past the page cache. `flushes`: at the end, and checked. `through`: after every write too."""

    direct: bool = False
    flushes: bool = True
    through: bool = False


CACHE_MODES = {
    "none": CacheMode(direct=True),
    "off": CacheMode(direct=True),
    "writeback": CacheMode(),
    "writethrough": CacheMode(through=True),
    "directsync": CacheMode(direct=True, through=True),
    "unsafe": CacheMode(flushes=False),
}
