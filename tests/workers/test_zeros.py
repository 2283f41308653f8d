"""Zero runs, against a byte-by-byte model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpconv.workers.zeros import find_runs


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=20), st.sampled_from([512, 4096, 12288]))
def test_zero_runs_hold_only_zeros_and_long_ones_are_found(parts, sparse_size):
    buffer = bytearray().join(bytes(n) if zero else b"\x01" * n for zero, n in parts)
    runs = find_runs(memoryview(buffer), 0, sparse_size=sparse_size, alignment=512)
    at = 0
    for offset, length, zero in runs:
        assert offset == at
        at += length
        assert not (zero and any(buffer[offset : offset + length]))
    assert at == len(buffer)
    found = sum(length for _, length, zero in runs if zero)
    run = len(buffer) - len(bytes(buffer).rstrip(b"\0"))
    assert found >= run - 2 * sparse_size


def test_no_detection_writes_everything():
    assert find_runs(memoryview(bytearray(8192)), 0, sparse_size=0, alignment=512) == [(0, 8192, False)]
