"""What all tests of the state machine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import playbook


@pytest.fixture(autouse=True)
def every_playbook_is_asserted() -> Iterator[None]:
    """A playbook that nobody asserts would pass whatever it says."""
    yield
    playbook.all_asserted()
