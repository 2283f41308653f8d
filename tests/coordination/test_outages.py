"""Which workers wait for a server."""

from __future__ import annotations

from mpconv.coordination.outages import Outages

REFUSED = "'b' does not answer (Connection refused: 111)"


def test_the_first_to_wait_says_why_and_all_are_counted():
    told: list[tuple[int, str]] = []
    outages = Outages(lambda count, why: told.append((count, why)))
    assert not outages.waiting
    outages.trouble("w1", f"{REFUSED}: trying again for 5:00", 10.0)
    outages.trouble("w2", "'b' is not there: trying again for 5:00", 11.0)
    outages.trouble("w1", f"{REFUSED}: trying again for 4:50", 20.0)
    outages.works("w3", 20.0)
    assert outages.waiting and told == [(1, REFUSED), (2, REFUSED)]
    outages.works("w1", 20.5)
    outages.over("w2")
    outages.end()
    assert not outages.waiting and told[2:] == [(1, "'b' is not there"), (0, "")]


def test_what_was_read_before_the_server_went_does_not_end_it():
    told: list[tuple[int, str]] = []
    outages = Outages(lambda count, why: told.append((count, why)))
    outages.trouble("w1", REFUSED, 10.0)
    outages.works("w1", 10.5)
    assert told == [(1, REFUSED)]
    outages.works("w1", 11.0)
    assert told == [(1, REFUSED), (0, "")]


def test_the_end_of_the_job_is_the_end_of_all():
    told: list[tuple[int, str]] = []
    outages = Outages(lambda count, why: told.append((count, why)))
    outages.trouble("w1", REFUSED, 10.0)
    outages.trouble("w2", REFUSED, 10.0)
    outages.end()
    outages.end()
    assert told == [(1, REFUSED), (2, REFUSED), (0, "")]
