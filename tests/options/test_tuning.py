"""How many workers and buffers are chosen, and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.units import MiB
from mpconv.options.copy import Options
from mpconv.options.tuning import BUFFER, words, workers_for


@pytest.mark.parametrize(
    ("size", "cores", "options", "expected"),
    [
        (0, 64, Options(), (1, 8)),
        (64 * MiB - 1, 64, Options(), (1, 8)),
        (1 << 40, 2, Options(), (2, 8)),
        (1 << 40, 64, Options(), (8, 32)),
        (1 << 40, 64, Options(workers=20), (20, 80)),
        (1 << 40, 64, Options(requests=1), (1, 1)),
        (1 << 40, 4, Options(requests=10), (4, 10)),
        (1, 1, Options(workers=3), (3, 12)),
    ],
)
def test_workers_and_their_buffers(size, cores, options, expected):
    assert workers_for(size, cores, options) == expected


def test_alone_in_order_there_is_one_worker_unless_more_are_asked_for():
    assert workers_for(1 << 40, 64, Options(), alone=True) == (1, 8)
    assert workers_for(1 << 40, 64, Options(workers=3), alone=True) == (3, 12)


def test_every_core_compresses() -> None:
    assert workers_for(1 << 40, 64, Options(), compressing=True) == (8, 80)
    assert workers_for(1 << 40, 2, Options(), compressing=True) == (2, 8)
    assert workers_for(1 << 40, 64, Options(requests=16), compressing=True) == (8, 16)


@pytest.mark.parametrize(
    ("round_trips", "expected"),
    [(0.0, 8), (0.0006, 8), (0.0007, 9), (0.005, 15), (0.010, 22), (0.040, 67), (0.100, 72), (10.0, 72)],
)
def test_the_farther_away_the_more_is_in_flight(round_trips: float, expected: int) -> None:
    assert workers_for(1 << 40, 2, Options(), round_trips=round_trips, alone=True) == (1, expected)


@pytest.mark.parametrize(
    ("size", "cores", "round_trips", "expected"),
    [
        (1 << 40, 2, 0.0039, (2, 13)),
        (1 << 40, 2, 0.004, (4, 64)),
        (1 << 40, 1, 10.0, (4, 80)),
        (1 << 40, 64, 0.004, (8, 96)),
        (64 * MiB, 2, 0.004, (2, 32)),
        (1, 2, 0.004, (1, 16)),
    ],
)
def test_far_away_and_in_no_order_there_are_more_workers(
    size: int, cores: int, round_trips: float, expected: tuple[int, int]
) -> None:
    assert workers_for(size, cores, Options(), round_trips=round_trips) == expected


def test_larger_buffers_are_fewer() -> None:
    assert workers_for(1 << 40, 2, Options(), round_trips=0.02, buffer_size=16 * MiB) == (4, 22)


@given(
    size=st.integers(0, 1 << 63),
    cores=st.integers(1, 512),
    workers=st.none() | st.integers(1, 256),
    requests=st.none() | st.integers(1, 1024),
    alone=st.booleans(),
    compressing=st.booleans(),
    round_trips=st.floats(0, 100),
)
def test_what_is_asked_for_is_what_is_done(
    size: int,
    cores: int,
    workers: int | None,
    requests: int | None,
    alone: bool,
    compressing: bool,
    round_trips: float,
) -> None:
    """And every worker has a buffer at least; no more than a GiB of memory is chosen by itself, but for many cores."""
    options = Options(workers=workers, requests=requests)
    count, total = workers_for(size, cores, options, alone=alone, compressing=compressing, round_trips=round_trips)
    assert 1 <= count <= total
    assert requests is None or total == requests
    assert workers is None or count == min(workers, total)
    assert requests is not None or workers is not None or compressing or total * BUFFER <= 192 * MiB


def test_what_people_read_of_it() -> None:
    assert (
        words(2, 8, BUFFER, 2, 0.00021, 0.0) == "2 workers, 8 buffers of 2 MiB in flight: 2 cores, 0.2 ms to the source"
    )
    assert words(1, 13, MiB, 1, 0.005, 0.0049) == (
        "1 worker, 13 buffers of 1 MiB in flight: 1 core, 5.0 ms to the source, 4.9 ms to the target"
    )
