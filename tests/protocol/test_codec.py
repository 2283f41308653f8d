"""Every message makes the round trip; everything that is not a message is a ProtocolError and nothing else."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.errors import KINDS, ProtocolError
from mpconv.model.place import Place
from mpconv.protocol import messages as m
from mpconv.protocol.codec import MAX_FRAME, decode_from_coordinator, decode_from_worker, encode
from mpconv.protocol.job import Clusters, Job

LARGEST = (1 << 63) - 1

numbers = st.integers(0, LARGEST)
sizes = st.integers(1, LARGEST)
unicode = st.text(max_size=200)
bytes_of_names = st.binary(max_size=40).map(lambda name: name.decode(errors="surrogateescape"))
texts = unicode | bytes_of_names | st.text(max_size=9).map("\U0010ffff".__add__)
kinds = st.sampled_from(sorted(KINDS)) | texts
per_cluster = st.lists(numbers, max_size=5)

places = st.recursive(
    st.builds(Place, url=texts, offset=numbers, size=st.none() | numbers, direct=st.booleans(), shared=st.booleans()),
    lambda below: st.builds(
        Place,
        url=texts,
        format=st.none() | texts,
        snapshot=st.none() | texts,
        backing=st.none() | below,
        data_file=st.none() | below,
    ),
    max_leaves=3,
)
clusters = st.builds(
    Clusters,
    size=sizes,
    part=sizes,
    compression=st.none() | texts,
    level=st.none() | numbers,
    stores_zeros=st.booleans(),
    unit=sizes,
    in_place=st.booleans(),
)
jobs = st.builds(
    Job,
    id=numbers,
    sources=st.lists(places, min_size=1, max_size=3),
    source_sizes=st.lists(numbers, max_size=3),
    target_sizes=st.lists(numbers, max_size=3),
    targets=st.lists(places, min_size=1, max_size=3),
    size=numbers,
    in_order=st.booleans(),
    sparse_size=numbers,
    zero_initialised=st.booleans(),
    requests=sizes,
    durable=st.booleans(),
    write_through=st.booleans(),
    salvage=st.booleans(),
    offload=st.booleans(),
    compare=st.booleans(),
    reads_zeros=st.lists(st.booleans(), max_size=3),
    dropped=st.lists(numbers, max_size=3),
    clusters=st.none() | clusters,
    buffer_size=sizes,
    lease_size=sizes,
)
from_worker = {
    m.Hello: st.builds(m.Hello, numbers, numbers, texts, numbers, st.lists(numbers, max_size=5)),
    m.Want: st.builds(m.Want, st.integers(1, m.MAX_WANT)),
    m.Ready: st.builds(m.Ready, numbers, numbers, per_cluster, per_cluster),
    m.Done: st.builds(m.Done, numbers, numbers, numbers),
    m.Failed: st.builds(m.Failed, numbers, texts, texts, texts, st.none() | numbers, kinds, texts),
    m.Crowded: st.builds(m.Crowded, numbers, texts, texts, st.booleans()),
    m.TargetFailed: st.builds(m.TargetFailed, numbers, numbers, texts, texts, texts, st.none() | numbers, kinds, texts),
    m.Lost: st.builds(m.Lost, numbers, st.lists(st.tuples(numbers, numbers), max_size=5), texts),
    m.Differs: st.builds(m.Differs, numbers, numbers),
    m.Said: st.builds(m.Said, numbers, texts),
    m.Trouble: st.builds(m.Trouble, numbers, texts),
    m.Alive: st.builds(m.Alive, numbers),
    m.Leaving: st.builds(m.Leaving),
    m.Gone: st.builds(m.Gone),
    m.FlushDone: st.builds(m.FlushDone, numbers),
}
from_coordinator = {
    m.Open: st.builds(m.Open, jobs, st.floats(0, m.MAX_FENCE)),
    m.Wait: st.builds(m.Wait, st.floats(0, m.MAX_FENCE, exclude_min=True)),
    m.LeaseGrant: st.builds(m.LeaseGrant, numbers, numbers, numbers, sizes, st.integers(0, 2), st.booleans()),
    m.Token: st.builds(m.Token, numbers, numbers, per_cluster),
    m.Flush: st.builds(m.Flush, numbers),
    m.Drop: st.builds(m.Drop, numbers, numbers),
    m.Bye: st.builds(m.Bye, st.booleans()),
    m.Heard: st.builds(m.Heard, numbers),
    m.Refused: st.builds(m.Refused, texts),
}
MESSAGES = from_worker | from_coordinator
EXAMPLES = [
    m.Hello(1, 2, "host", 3, [4]),
    m.Alive(1),
    m.Heard(1),
    m.Wait(0.5),
    m.Refused("why"),
    m.Wait(0.5),
    m.Want(1),
    m.Ready(1, 2, [3, 0], [1, 0]),
    m.Done(1, 2, 3),
    m.Failed(1, "why", "reading", "image", 5),
    m.TargetFailed(1, 2, "why", "writing", "image", None),
    m.Failed(1, "why", "", "image", None, "no-space", "reason"),
    m.Crowded(1, "image", "why"),
    m.Lost(1, [(2, 3)], "why"),
    m.Differs(1, 2),
    m.Said(1, "text"),
    m.Trouble(1, "text"),
    m.FlushDone(1),
    m.LeaseGrant(1, 2, 3, 4, 0, True),
    m.Token(1, 2, [3]),
    m.Flush(1),
    m.Drop(1, 2),
]


def decode(message: Any) -> Any:
    return decode_from_worker if type(message) in from_worker else decode_from_coordinator


def other(message: Any) -> Any:
    return decode_from_coordinator if type(message) in from_worker else decode_from_worker


def with_field(message: Any, field: str, value: Any) -> bytes:
    plain = msgspec.msgpack.decode(encode(message))
    plain[field] = value
    return msgspec.msgpack.encode(plain)


INTEGERS = [
    (message, field)
    for message in EXAMPLES
    for field in message.__struct_fields__
    if isinstance(getattr(message, field), int) and not isinstance(getattr(message, field), bool)
]


REQUIRED = [
    (message, field) for message, field in INTEGERS if field not in ("count", "number") or isinstance(message, m.Heard)
]


def test_no_message_is_left_out():
    assert set(from_worker) == set(get_args(m.FromWorker))
    assert set(from_coordinator) == set(get_args(m.FromCoordinator))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_makes_the_round_trip_to_its_own_side_only(kind):
    @given(MESSAGES[kind])
    def check(message):
        frame = encode(message)
        assert decode(message)(frame) == message
        with pytest.raises(ProtocolError):
            other(message)(frame)

    check()


@given(st.binary(max_size=300))
def test_random_bytes(frame):
    for decoder in (decode_from_worker, decode_from_coordinator):
        try:
            decoded = decoder(frame)
        except ProtocolError:
            continue
        assert decoder(encode(decoded)) == decoded


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | unicode
    | st.binary(max_size=20)
    | st.sampled_from(["type", "done", "hello", "open", "job"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(unicode | st.just("type"), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_any_other_well_formed_value(value):
    frame = msgspec.msgpack.encode(value)
    for decoder in (decode_from_worker, decode_from_coordinator):
        try:
            decoded = decoder(frame)
        except ProtocolError:
            continue
        assert isinstance(decoded, msgspec.Struct)


@given(st.one_of(*MESSAGES.values()), st.data())
def test_a_damaged_message(message, data):
    """Whatever one changed byte makes of it: a message within bounds, or a ProtocolError."""
    frame = bytearray(encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode(message)(bytes(frame))
    except ProtocolError:
        return
    assert decode(decoded)(encode(decoded)) == decoded


@pytest.mark.parametrize(
    "message", [*EXAMPLES, m.Leaving(), m.Gone(), m.Bye()], ids=lambda message: type(message).__name__
)
def test_truncated_and_with_something_behind(message):
    frame = encode(message)
    for length in range(len(frame)):
        with pytest.raises(ProtocolError):
            decode(message)(frame[:length])
    with pytest.raises(ProtocolError):
        decode(message)(frame + b"\xc0")


@pytest.mark.parametrize(("message", "field"), INTEGERS, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
@pytest.mark.parametrize("value", [-1, -(1 << 63), 1 << 63, (1 << 64) - 1, 1.5, True, "1", b"1", [1], {}])
def test_wrong_types_and_sizes_out_of_bounds(message, field, value):
    with pytest.raises(ProtocolError):
        decode(message)(with_field(message, field, value))


@pytest.mark.parametrize(("message", "field"), REQUIRED, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_a_missing_field(message, field):
    raw = msgspec.msgpack.decode(encode(message))
    del raw[field]
    with pytest.raises(ProtocolError):
        decode(message)(msgspec.msgpack.encode(raw))


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (m.LeaseGrant(1, 2, 3, 4, 0, True), "length", 0),
        (m.LeaseGrant(1, 2, 3, 4, 0, True), "kind", 3),
        (m.LeaseGrant(1, 2, 3, 4, 0, True), "token", 1),
        (m.Ready(1, 2), "needs", [0] * (m.MAX_CLUSTERS + 1)),
        (m.Ready(1, 2), "needs", [-1]),
        (m.Ready(1, 2), "parts", [1 << 63]),
        (m.Ready(1, 2), "parts", None),
        (m.Token(1, 2), "places", [0] * (m.MAX_CLUSTERS + 1)),
        (m.Token(1, 2), "places", [b"0"]),
        (m.Want(1), "leases", 0),
        (m.Want(1), "leases", m.MAX_WANT + 1),
        (m.Failed(1, "", "", "", None), "why", None),
        (m.Failed(1, "", "", "", None), "kind", None),
        (m.Failed(1, "", "", "", None), "kind", 1),
        (m.TargetFailed(1, 2, "", "", "", None), "kind", ["no-space"]),
        (m.TargetFailed(1, 2, "", "", "", None), "reason", b""),
        (m.Alive(), "type", "unknown"),
        (m.Alive(), "type", 0),
        (m.Alive(), "type", None),
    ],
)
def test_no_such_value(message, field, value):
    with pytest.raises(ProtocolError):
        decode(message)(with_field(message, field, value))


def test_unknown_fields_are_passed_over():
    """A later version may say more without a new number."""
    assert decode_from_worker(with_field(m.Want(3), "later", 1)) == m.Want(3)


def test_a_frame_over_the_limit_is_not_even_looked_at():
    frame = encode(m.Failed(1, "x" * MAX_FRAME, "", "", None))
    with pytest.raises(ProtocolError, match="over the limit"):
        decode_from_worker(frame)
    fits = m.Failed(1, "x" * (MAX_FRAME - 200), "", "", None)
    assert decode_from_worker(encode(fits)) == fits


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a"])
def test_endless_nesting(nest):
    for decoder in (decode_from_worker, decode_from_coordinator):
        with pytest.raises(ProtocolError):
            decoder(nest * 200_000)


def test_what_claims_to_be_long_takes_no_memory():
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(ProtocolError):
            decode_from_worker(claim)
