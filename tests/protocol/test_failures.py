"""An error that a worker tells of is the same error in the coordinator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model import errors
from mpconv.model.errors import KINDS, Fatal, MpconvError
from mpconv.protocol.codec import decode_from_worker, encode
from mpconv.protocol.failures import error_of, failed, target_failed
from mpconv.protocol.messages import Failed, TargetFailed

OTHERS = {errors.Crowded: errors.Unreachable, errors.WorkerLost: Fatal, errors.Busy: Fatal, errors.ProtocolError: Fatal}
texts = st.text(max_size=30)


def sent(message: Failed | TargetFailed) -> MpconvError:
    told = decode_from_worker(encode(message))
    assert isinstance(told, Failed | TargetFailed)
    return error_of(told)


@given(st.sampled_from([*KINDS.values(), *OTHERS]), texts, texts, texts, st.none() | st.integers(0, 1 << 62), texts)
def test_nothing_of_it_is_lost(kind, why, operation, image, offset, reason):
    error = kind(why, operation=operation, image=image, offset=offset)
    error.reason = reason
    for message in (failed(1, error), target_failed(1, 2, error)):
        found = sent(message)
        assert type(found) is OTHERS.get(kind, kind)
        assert (found.why, found.operation, found.image, found.offset) == (why, operation, image, offset)
        assert (found.reason, found.exit_code, str(found)) == (reason, 1, str(error))


@pytest.mark.parametrize("kind", ["", "Fatal", "Interrupted", "status-withdrawn", "\udcff", "x" * 1000])
def test_a_kind_that_is_none_is_fatal(kind):
    assert type(sent(Failed(1, "why", "", "", None, kind))) is Fatal
    assert type(sent(TargetFailed(1, 0, "why", "", "", None, kind))) is Fatal
