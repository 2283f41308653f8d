"""A crowd of workers and one coordinator, for a moment."""

from __future__ import annotations

import os

from tests.scale.run import Load, measure


def test_every_lease_of_a_crowd_is_counted():
    everywhere = os.sched_getaffinity(0)
    load = Load(workers=60, crowds=2, leases=2, latency=0.05, seconds=1.0)
    found = measure(load, everywhere, everywhere)
    assert found.granted > 0
    assert 0 < found.cpu <= len(everywhere) * found.seconds
