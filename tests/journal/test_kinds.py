"""What lies where, a letter for each bin."""

from __future__ import annotations

from mpconv.journal.kinds import Kinds
from mpconv.model.extent import Extent, Kind
from mpconv.model.units import bin_size

BIN = 4096


def test_data_counts_before_zeros_and_zeros_before_nothing():
    kinds = Kinds(5 * BIN)
    kinds.add(Extent(0, 4 * BIN, Kind.UNALLOCATED))
    assert kinds.changed() == b"uuuu."
    kinds.add(Extent(BIN, 2 * BIN, Kind.ZERO))
    kinds.add(Extent(2 * BIN, 1))
    kinds.add(Extent(2 * BIN + 1, 2 * BIN - 1, Kind.ZERO))
    kinds.add(Extent(0, BIN, Kind.UNALLOCATED))
    assert kinds.changed() == b"uzdz."
    assert kinds.changed() is None
    kinds.add(Extent(0, 5 * BIN))
    assert kinds.changed() == b"ddddd"


def test_the_next_run_goes_on_with_the_letters_of_the_one_before_if_they_are_as_many():
    assert Kinds(3 * BIN, b"dzu").changed() is None
    again = Kinds(3 * BIN, b"dzu")
    again.add(Extent(2 * BIN, BIN, Kind.ZERO))
    assert again.changed() == b"dzz"
    other = Kinds(3 * BIN, b"dz")
    other.add(Extent(0, 1))
    assert other.changed() == b"d.."


def test_bins_are_at_most_2000_and_begin_at_multiples_of_4_kib():
    for size in (0, 1, 4096, 4097, 8_192_000, 8_192_001, 1 << 44):
        found = bin_size(size)
        assert found % BIN == 0 and -(-size // found) <= 2000
