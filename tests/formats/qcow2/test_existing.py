"""Host clusters of an image that existed before it is written into."""

from __future__ import annotations

from array import array

from mpconv.extent import Extent
from mpconv.formats.qcow2.entries import COPIED
from mpconv.formats.qcow2.existing import ExistingLayout
from mpconv.formats.qcow2.header import Header

WHOLE = 64 * 1024


def layout(references: list[int], table: list[int]) -> ExistingLayout:
    header = Header(
        version=3,
        cluster_bits=16,
        size=4 * WHOLE,
        l1_size=1,
        l1_offset=WHOLE,
        refcount_table_offset=2 * WHOLE,
        refcount_table_clusters=1,
    )
    entries = array("Q", bytes(WHOLE))
    entries[: len(table)] = array("Q", table)
    return ExistingLayout(
        4 * WHOLE,
        header,
        l1=array("Q", [COPIED | 4 * WHOLE]),
        tables={0: entries},
        references=array("Q", references),
        host_clusters=len(references),
        reads_as_zeros=False,
    )


def write(made: ExistingLayout, cluster: int) -> int:
    extent = Extent(cluster * WHOLE, WHOLE)
    [place] = made.place(extent, [WHOLE])
    made.wrote(extent, [WHOLE], [place], [])
    return place // WHOLE


def test_alone_in_place_shared_and_new_somewhere_else():
    made = layout([1, 1, 1, 1, 1, 1, 2, 0], [COPIED | 5 * WHOLE, 6 * WHOLE])
    assert [write(made, cluster) for cluster in range(3)] == [5, 7, 8]
    assert list(made.references) == [1, 1, 1, 1, 1, 1, 1, 1, 1]


def test_what_a_dead_worker_wrote_is_written_again_to_another_new_cluster():
    made = layout([1, 1, 1, 1, 1], [])
    assert [write(made, 0), write(made, 0)] == [5, 6]
    assert list(made.references) == [1, 1, 1, 1, 1, 0, 1]
