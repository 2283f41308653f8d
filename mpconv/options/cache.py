"""Cache modes, by qemu-img's names. Pure."""

from __future__ import annotations

from msgspec import Struct


class CacheMode(Struct, frozen=True):
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
