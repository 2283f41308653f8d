"""Buffer -> runs of data and zero, by the rules of `qemu-img convert -S`. Pure.

The alignment is `-S`, rounded down to a power of two, or the target's if that is larger. A buffer that is all data or
all zero stays whole. A run of zeros in front ends at an aligned byte, or counts as data if it reaches none. Behind
data, runs of zeros shorter than `-S` count as data.

A buffer of mixed content is not looked at byte by byte: a few sampled columns, combined in C, show at once which
blocks hold data, and memcmp settles the rest. 2 MiB of dense data cost some tens of microseconds.
"""

from __future__ import annotations

import ctypes

from mpconv.model.units import MiB, align_up

_ZEROS = bytes(MiB)
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int
_zeros_at = ctypes.cast(ctypes.c_char_p(_ZEROS), ctypes.c_void_p).value

_COLUMNS = 8

Run = tuple[int, int, bool]
"""(offset in the buffer, length, whether it is zero)."""


def _is_zero(address: int, length: int) -> bool:
    while length > MiB:
        if _memcmp(address, _zeros_at, MiB):
            return False
        address += MiB
        length -= MiB
    return bool(_memcmp(address, _zeros_at, length) == 0)


def is_zero(buffer: memoryview) -> bool:
    """Whether every byte of a writable buffer is zero."""
    return _is_zero(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))


def find_runs(buffer: memoryview, start: int, *, sparse_size: int, alignment: int) -> list[Run]:
    """Runs of `buffer`, which lies at guest byte `start`, in order and without gaps.

    `sparse_size`: `-S` in bytes, 0 for no detection. `alignment`: the target's, in bytes.
    """
    length = len(buffer)
    if not sparse_size or not length:
        return [(0, length, False)]
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    if _is_zero(address, length):
        return [(0, length, True)]
    block = max(1 << (sparse_size.bit_length() - 1), alignment)
    first = min(length, align_up(start, block) - start)
    runs: list[Run] = []
    if first:
        _append(runs, 0, first, _is_zero(address, first))
    blocks = (length - first) // block
    if blocks:
        body = buffer[first : first + blocks * block]
        at = 0
        for index in _zero_blocks(body, address + first, block, blocks):
            if index > at:
                _append(runs, first + at * block, (index - at) * block, False)
            _append(runs, first + index * block, block, True)
            at = index + 1
        if at < blocks:
            _append(runs, first + at * block, (blocks - at) * block, False)
    rest = first + blocks * block
    if rest < length:
        _append(runs, rest, length - rest, _is_zero(address + rest, length - rest))
    return _without_short_zeros(runs, min(sparse_size, length))


def _zero_blocks(body: memoryview, address: int, block: int, blocks: int) -> list[int]:
    combined = 0
    for column in range(_COLUMNS):
        at = block * column // _COLUMNS + column % 8
        combined |= int.from_bytes(body[at::block].tobytes(), "little")
    flags = combined.to_bytes(blocks, "little")
    found = []
    index = flags.find(0)
    while index >= 0:
        if _is_zero(address + index * block, block):
            found.append(index)
        index = flags.find(0, index + 1)
    return found


def _append(runs: list[Run], offset: int, length: int, zero: bool) -> None:
    if runs and runs[-1][2] == zero:
        offset, before, _ = runs.pop()
        length += before
    runs.append((offset, length, zero))


def _without_short_zeros(runs: list[Run], minimum: int) -> list[Run]:
    """Zero runs between data that are shorter than `minimum` join the data."""
    kept: list[Run] = []
    for index, (offset, length, zero) in enumerate(runs):
        inside = 0 < index < len(runs) - 1
        _append(kept, offset, length, zero and not (inside and length < minimum))
    return kept
