"""When an outage ends, how long is waited, and what is said."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.errors import Fatal, Gone, NoSuchImage, Retryable, Unreachable
from mpconv.transports.base import cannot_open
from mpconv.transports.retry import AT_ONCE, Outage, Retry, Throttled, keep_trying

REFUSED = cannot_open("nfs://a/b", "Connection refused", Unreachable)
MISSING = cannot_open("nfs://a/b", "No such file or directory", NoSuchImage)


def test_waits_double_up_to_five_seconds():
    outage = Outage(Retry(300), chance=lambda: 1.0)
    waits = [outage.failed(REFUSED, 0.0) for _ in range(8)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    outage.over()
    assert outage.failed(REFUSED, 0.0) == pytest.approx(0.1)


@given(st.floats(0, 1), st.floats(0, 400), st.integers(0, 3000))
def test_no_wait_goes_beyond_the_end(chance, later, failures):
    outage = Outage(Retry(300), chance=lambda: chance)
    for _ in range(failures % 20):
        outage.failed(REFUSED, 0.0)
    outage.failed(REFUSED, 0.0)
    wait = outage.failed(REFUSED, later)
    assert (wait is None) == (later >= 300)
    assert wait is None or 0 <= wait <= min(5.0, 300 - later)


def test_the_time_counts_from_the_first_failure_and_anew_after_a_success():
    outage = Outage(Retry(10))
    assert outage.failed(REFUSED, 100.0) is not None
    assert outage.failed(REFUSED, 109.9) is not None
    assert outage.failed(REFUSED, 110.0) is None
    outage.over()
    assert outage.failed(REFUSED, 110.0) is not None


def test_what_is_missing_is_waited_for_a_quarter_of_a_minute_after_the_server_answers():
    outage = Outage(Retry(300))
    assert outage.failed(REFUSED, 0.0) is not None
    assert outage.failed(MISSING, 60.0) is not None
    assert outage.failed(MISSING, 74.0) is not None
    assert outage.failed(MISSING, 75.0) is None
    assert outage.failed(REFUSED, 75.0) is not None
    assert outage.failed(MISSING, 76.0) is not None


@pytest.mark.parametrize("error", [Fatal("No space left on device"), Gone("it is another file")])
def test_other_errors_are_final(error):
    assert Outage(Retry(300)).failed(error, 0.0) is None


def test_the_first_failure_is_told_then_one_in_ten_seconds():
    outage = Outage(Retry(252))
    said = []
    for now in (0.0, 1.0, 9.9, 10.0, 12.0, 20.5):
        outage.failed(REFUSED, now)
        said.append(outage.words(REFUSED, now))
    line = "'nfs://a/b' does not answer (Connection refused): trying again for"
    assert said == [f"{line} 4:12", None, None, f"{line} 4:02", None, f"{line} 3:52"]


def test_what_is_missing_is_not_said_not_to_answer():
    outage = Outage(Retry(60))
    outage.failed(MISSING, 0.0)
    assert outage.words(MISSING, 0.0) == "'nfs://a/b' is not there (No such file or directory): trying again for 1:00"


async def tried(errors: list[Exception], retry: Retry) -> tuple[str, list[str]]:
    """The answer of an attempt that fails with these errors first, and what was told."""
    told: list[str] = []

    async def attempt() -> str:
        if errors:
            raise errors.pop(0)
        return "open"

    return await keep_trying(attempt, retry, told.append), told


def test_an_attempt_is_made_until_it_works():
    found, told = asyncio.run(tried([REFUSED, Retryable("lost", image="nfs://a/b"), MISSING], Retry(30)))
    assert found == "open"
    assert told == ["'nfs://a/b' does not answer (Connection refused): trying again for 0:30"]


def test_without_retries_the_first_error_is_the_last():
    with pytest.raises(Unreachable) as raised:
        asyncio.run(tried([REFUSED], AT_ONCE))
    assert str(raised.value) == "Could not open 'nfs://a/b': Connection refused"


def test_without_retries_a_lost_connection_is_final():
    with pytest.raises(Gone) as raised:
        asyncio.run(tried([Retryable("the connection was lost", operation="reading", image="x", offset=5)], AT_ONCE))
    assert str(raised.value) == "error while reading at byte 5 of 'x': the connection was lost"


def test_a_final_error_is_raised_as_it_is():
    with pytest.raises(Fatal, match="write protected"):
        asyncio.run(tried([REFUSED, cannot_open("nfs://a/b", "the LUN is write protected")], Retry(30)))


def test_how_long_it_was_tried_is_said():
    with pytest.raises(Gone) as raised:
        asyncio.run(tried([REFUSED] * 1000, Retry(0.2)))
    assert str(raised.value) == "Could not open 'nfs://a/b': Connection refused (given up after 0 seconds)"


def test_lines_that_differ_in_what_is_done_are_passed_on_sparingly():
    now, told = [0.0], list[str]()
    tell = Throttled(told.append, lambda: now[0])
    for at, text in [
        (0.0, "'nfs://a/b' does not answer (refused): trying again for 0:30"),
        (1.0, "'nfs://a/b' does not answer (refused): trying again for 0:29"),
        (2.0, "'nfs://a/c' does not answer (refused): trying again for 0:30"),
        (11.0, "'nfs://a/b' does not answer (refused): trying again for 0:19"),
    ]:
        now[0] = at
        tell(text)
    assert [text[-4:] for text in told] == ["0:30", "0:30", "0:19"]
