"""L2 entries that are kept while an image is written, and put back into a new layout."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.saved_entries import KeptEntries
from mpconv.model.errors import ImageError
from mpconv.model.extent import Extent, Kind
from mpconv.model.ranges import Ranges
from mpconv.model.units import KiB, MiB

MOST = 300
"""Clusters of a disk: with 512 bytes each, several tables."""


@st.composite
def disks(draw):
    size = draw(st.sampled_from([512, 4 * KiB, 64 * KiB]))
    extended = size == 64 * KiB and draw(st.booleans())
    backed = draw(st.booleans())
    preallocated = draw(st.booleans()) and (extended or not backed)
    made = Qcow2Options(
        cluster_size=size,
        extended_l2=extended,
        preallocation="metadata" if preallocated else "off",
        backing_file="base" if backed else None,
        backing_fmt="raw" if backed else None,
    )
    backing = draw(st.integers(0, MOST)) * size if backed else None
    return made, MOST * size - draw(st.sampled_from([0, 512])), backing


leases = st.lists(
    st.tuples(
        st.integers(0, MOST - 1),
        st.integers(1, 40),
        st.sampled_from(["durable", "written", "passed", "unallocated"]),
        st.sampled_from([0, 1, 0.3]),
        st.integers(0, (1 << 32) - 1),
    ),
    max_size=30,
)


@given(disks(), leases, st.lists(st.booleans(), min_size=30, max_size=30))
@settings(max_examples=200, deadline=None)
def test_what_is_durable_comes_back_and_nothing_else(disk, asked, committed):
    """Beside a layout that was only ever told of what is durable."""
    made, size, backing = disk
    layout, alone = (Layout(size, made, backing_size=backing) for _ in range(2))
    kept, parts, done = KeptEntries(layout), {}, Ranges()
    taken: set[int] = set()
    for (first, count, fate, share, bitmap), commit in zip(asked, committed, strict=False):
        clusters = range(first, min(first + count, layout.clusters))
        if not clusters or taken & set(clusters):
            continue
        taken |= set(clusters)
        whole = layout.cluster_size
        start, end = first * whole, min(size, clusters.stop * whole)
        extent = Extent(start, end - start, Kind.UNALLOCATED if fate == "unallocated" else Kind.ZERO)
        if fate in {"passed", "unallocated"}:
            layout.passed(extent)
            alone.passed(extent)
        else:
            need = whole if share == 1 or layout.preallocated else int(share * whole)
            needs = [need] * len(clusters)
            places, subclusters = layout.place(extent, needs), [bitmap] * len(clusters)
            layout.wrote(extent, needs, places, subclusters)
            if fate == "written":
                continue
            alone.begin_behind(layout.end)
            alone.wrote(extent, needs, places, subclusters)
        done.add(extent.start, extent.end)
        kept.mark(extent)
        if commit:
            parts |= kept.changed(done)
    parts |= kept.changed(done)
    restored = Layout(size, made, backing_size=backing)
    KeptEntries(restored).restore(parts, done, kept.end)
    alone.begin_behind(layout.end)
    empty = array("Q", bytes(layout.cluster_size))
    for number in range(layout.l1_size):
        assert restored.tables.get(number, empty) == alone.tables.get(number, empty), number
    assert restored.references == alone.references
    assert restored.end == layout.end


def test_without_tables_there_is_nothing_to_keep():
    layout = Layout(1 << 40, Qcow2Options())
    kept, done = KeptEntries(layout), Ranges()
    kept.mark(Extent(0, 1 << 40, Kind.ZERO))
    done.add(0, 1 << 40)
    assert kept.changed(done) == {}


def test_what_cannot_be_right_is_refused():
    whole = 64 * KiB
    layout, done = Layout(MiB, Qcow2Options()), Ranges()
    kept, extent = KeptEntries(layout), Extent(0, MiB)
    layout.wrote(extent, [whole] * 16, layout.place(extent, [whole] * 16), [])
    kept.mark(extent)
    done.add(0, MiB)
    parts = kept.changed(done)
    with pytest.raises(ImageError, match="never handed out"):
        KeptEntries(Layout(MiB, Qcow2Options())).restore(parts, done, whole)
    less = Ranges()
    less.add(0, whole)
    with pytest.raises(ImageError, match="does not say of all that is done"):
        KeptEntries(Layout(MiB, Qcow2Options())).restore(parts, less, kept.end)
