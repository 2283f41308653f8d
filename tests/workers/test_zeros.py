"""Zero runs, against a byte-by-byte model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpconv.workers.zeros import Run, find_runs

SECTOR = 512


def qemu_runs(zero: list[bool], first: int, shortest: int, alignment: int) -> list[Run]:
    """The rules in zeros.py to the letter, a sector at a time. All in sectors; `first`: the buffer's place."""

    def stretch(at: int) -> int:
        """Where the run that begins at `at` ends, by the rules of alignment; negative when it counts as zeros."""
        end = next((n for n in range(at, len(zero)) if zero[n] != zero[at]), len(zero))
        if end == len(zero):
            return -end if zero[at] else end
        tail = (first + end) % alignment
        if tail and (not zero[at] or end - at <= tail):
            return min(end + alignment - tail, len(zero))
        return -(end - tail) if zero[at] else end

    runs: list[Run] = []
    at = 0
    while at < len(zero):
        end = stretch(at)
        if end > 0:
            enough, used, looked = min(shortest, len(zero) - at), end, end
            while looked < len(zero):
                further = stretch(looked)
                if further < 0 and -further - looked >= enough:
                    break
                used = used if further < 0 else further
                looked = abs(further)
            end = used
            runs.append((at * SECTOR, (end - at) * SECTOR, False))
        else:
            runs.append((at * SECTOR, (-end - at) * SECTOR, True))
        at = abs(end)
    return runs


def joined(runs: list[Run]) -> list[Run]:
    """Neighbours of one kind as one."""
    found: list[Run] = []
    for offset, length, zero in runs:
        if found and found[-1][2] == zero:
            found[-1] = (found[-1][0], found[-1][1] + length, zero)
        else:
            found.append((offset, length, zero))
    return found


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 20)), min_size=1, max_size=20),
    st.sampled_from([1, 2, 3, 7, 8, 9, 12, 16, 100, 128]),
    st.sampled_from([1, 8]),
    st.integers(0, 40),
)
def test_runs_are_qemu_img_s(parts, shortest, target_alignment, first):
    zero = [kind for kind, length in parts for _ in range(length)]
    buffer = memoryview(bytearray().join(bytes(SECTOR) if kind else b"\x01" * SECTOR for kind in zero))
    found = find_runs(buffer, first * SECTOR, sparse_size=shortest * SECTOR, alignment=target_alignment * SECTOR)
    alignment = max(1 << (shortest.bit_length() - 1), target_alignment)
    assert joined(found) == joined(qemu_runs(zero, first, shortest, alignment))


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
