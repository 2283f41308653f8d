"""Sizes and alignment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.units import GiB, MiB, align_down, align_up, human, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("4k", 4096),
        ("4K", 4096),
        (" 1M ", MiB),
        ("1.5M", MiB + MiB // 2),
        ("0x10", 16),
        ("0.99999k", 1024),
        ("0.25k", 256),
        ("2G", 2 * GiB),
        ("8T", 8 << 40),
        ("1p", 1 << 50),
        ("7E", 7 << 60),
        ("7.999E", (7 << 60) + (999 << 60) // 1000),
        (str((1 << 63) - 1), (1 << 63) - 1),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "-1",
        "+1",
        "1.5",
        "1.5b",
        "1 k",
        "1kk",
        "1e3",
        "1,5k",
        ".5k",
        "1.",
        "inf",
        "nan",
        "٣",
        "8E",
        str(1 << 63),
        "9" * 30,
    ],
)
def test_nonsense_is_no_size(text):
    with pytest.raises(ValueError, match="is "):
        parse_size(text)


@given(st.integers(0, 1 << 63), st.integers(1, 1 << 30))
def test_alignment(value, alignment):
    low, high = align_down(value, alignment), align_up(value, alignment)
    assert low % alignment == high % alignment == 0
    assert low <= value <= high
    assert value - low < alignment and high - value < alignment


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1.25 * GiB, "1.25 GiB"),
        (8 << 40, "8 TiB"),
        (1 << 60, "1.049e+06 TiB"),
    ],
)
def test_for_people(size, text):
    assert human(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("2.5", 2.5), ("30s", 30), ("5m", 300), ("1m30s", 90), ("1h", 3600), ("1h0m1.5s", 3601.5)],
)
def test_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1d", "5 m", "m5", "1s1m", "inf", "nan", "1e3", "24001h"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"is not a time|is too long"):
        parse_seconds(text)
