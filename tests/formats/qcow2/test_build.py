"""The header that is written, read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.formats.qcow2 import header_bytes
from mpconv.formats.qcow2.header import DIRTY, Header, parse
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.errors import ImageError

names = st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


def made(options: Qcow2Options, size: int) -> Header:
    """As the header of a whole image: with tables that lie in the file."""
    cluster = options.cluster_size
    fields = {name: getattr(found := header_bytes.header_of(options, size), name) for name in Header.__struct_fields__}
    tables = {
        "l1_size": size * 16 // cluster // cluster + 1,
        "l1_offset": cluster,
        "refcount_table_offset": 2 * cluster,
        "refcount_table_clusters": 1,
    }
    return Header(**{**fields, **tables, "incompatible": found.incompatible & ~DIRTY})


@given(
    size=st.integers(0, 1 << 20).map(lambda sectors: sectors * 512),
    cluster_bits=st.integers(14, 21),
    version=st.sampled_from([2, 3]),
    refcount_order=st.integers(0, 6),
    zstd=st.booleans(),
    extended_l2=st.booleans(),
    lazy=st.booleans(),
    backing=names,
    data_file=names,
)
def test_what_is_written_is_read(
    size, cluster_bits, version, refcount_order, zstd, extended_l2, lazy, backing, data_file
):
    later = version == 3
    header = made(
        Qcow2Options(
            version=version,
            cluster_size=1 << cluster_bits,
            refcount_bits=1 << refcount_order if later else 16,
            compression_type="zstd" if zstd and later else "zlib",
            extended_l2=extended_l2 and later,
            lazy_refcounts=lazy and later,
            backing_file=backing,
            backing_fmt="raw" if backing else None,
            data_file=data_file if later else None,
        ),
        size,
    )
    cluster = header_bytes.encode(header)
    assert len(cluster) == 1 << cluster_bits
    assert parse(cluster, 1 << 40) == header


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("backing", [None, "base.raw", "x" * 300])
def test_the_smallest_cluster_holds_the_names_of_features_or_of_files(version, backing):
    options = Qcow2Options(
        version=version, cluster_size=512, backing_file=backing, backing_fmt="raw" if backing else None
    )
    header = made(options, 4096)
    cluster = header_bytes.encode(header)
    assert len(cluster) == 512
    assert parse(cluster, 1 << 40) == header
    assert (b"lazy refcounts" in cluster) is (version == 3 and backing is None)


@pytest.mark.parametrize("field", ["backing_file", "data_file"])
def test_names_that_do_not_fit_are_refused(field):
    with pytest.raises(ImageError, match="do not fit"):
        header_bytes.encode(made(Qcow2Options(cluster_size=512, **{field: "x" * 500}), 4096))


def test_a_header_without_tables_is_refused():
    for version in (2, 3):
        with pytest.raises(ImageError):
            parse(header_bytes.encode(header_bytes.header_of(Qcow2Options(version=version), 1 << 20)), 1 << 40)
