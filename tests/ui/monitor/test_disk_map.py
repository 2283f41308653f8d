"""The map of the disk: bytes of each bin, whatever the disk's size."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from mpconv.model.extent import Extent, Kind
from mpconv.model.units import MAP_BINS
from mpconv.ui.monitor.disk_map import DiskMap

KiB, MiB, TiB = 1 << 10, 1 << 20, 1 << 40


def test_a_bin_tells_what_lies_there_and_how_far_it_is():
    disk = DiskMap(5 * 4096)
    disk.found([Extent(0, 8192), Extent(8192, 4096, Kind.ZERO), Extent(12288, 8192, Kind.UNALLOCATED)])
    disk.done([Extent(8192, 12288, Kind.ZERO)], durable=True)
    disk.wrote([("", Extent(0, 4096), 0)])
    disk.wrote([("", Extent(4096, 2048), 0)])
    found = disk.facts()
    assert (found.bin, found.kinds, found.marks, found.levels) == (4096, "ddzuu", "wpsss", "94999")
    disk.durable([Extent(0, 6144)])
    assert disk.facts([Extent(6144, 2048)]).marks == "slsss"
    assert disk.facts([Extent(6144, 2048)], [Extent(4096, 512)]).marks == "s?sss"
    disk.all_verified()
    assert disk.facts().marks == "vvvvv"
    disk.none_verified()
    disk.undone([Extent(4096, 2048)])
    assert disk.facts().marks == "s.sss" and disk.facts().levels[1] == "0"


def test_zeros_that_workers_find_are_shown_as_zeros():
    disk = DiskMap(8192)
    disk.found([Extent(0, 8192)])
    disk.wrote([("", Extent(0, 4096), 4096)])
    disk.wrote([("", Extent(4096, 4096), 512)])
    assert disk.facts().kinds == "zd"


@pytest.mark.parametrize("size", [1, 511, 4096, 4097, 20 * MiB + 512, 7 * TiB + 3])
def test_all_of_a_disk_written_piece_by_piece_is_all_of_each_bin(size):
    chance = random.Random(size)
    cuts = sorted({0, size, *(chance.randrange(size) for _ in range(300))})
    pieces = [Extent(start, end - start) for start, end in itertools.pairwise(cuts)]
    chance.shuffle(pieces)
    disk = DiskMap(size)
    disk.found(pieces)
    disk.wrote(("", piece, 0) for piece in pieces)
    found = disk.facts()
    assert set(found.marks) == {"w"} and set(found.levels) == {"9"} and set(found.kinds) == {"d"}
    assert len(found.marks) <= MAP_BINS and (len(found.marks) - 1) * found.bin < size <= len(found.marks) * found.bin


def test_16_tib_in_small_extents_cost_a_step_each():
    """Some millionths of a second each on any machine; bins of 8 GiB, had each extent cost what a bin has, would be
    thousands of times that.
    """
    disk = DiskMap(16 * TiB)
    extents = [Extent(index * 64 * KiB, 64 * KiB) for index in range(20_000)]
    began = time.process_time()
    disk.wrote(("", extent, 0) for extent in extents)
    assert time.process_time() - began < 2
    assert disk.facts().marks.startswith("p.")
