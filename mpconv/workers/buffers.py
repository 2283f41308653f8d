"""Reused buffers, aligned to a page (which direct I/O and zero detection both like)."""

from __future__ import annotations

import mmap


def make(size: int) -> memoryview:
    """A page-aligned buffer of `size` bytes, in huge pages where the system gives them."""
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
