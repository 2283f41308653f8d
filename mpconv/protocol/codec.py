"""Message <-> frame. Anything that is not a message is a ProtocolError. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from mpconv.errors import ProtocolError
from mpconv.protocol import messages

MAX_FRAME = 1 << 20

_encoder = msgspec.msgpack.Encoder()
_from_worker: Any = msgspec.msgpack.Decoder(messages.FromWorker)
_from_coordinator: Any = msgspec.msgpack.Decoder(messages.FromCoordinator)


def encode(message: messages.FromWorker | messages.FromCoordinator) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def _decode(decoder: Any, frame: bytes) -> Any:
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"a frame of {len(frame)} bytes is over the limit of {MAX_FRAME}")
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from error


def decode_from_worker(frame: bytes) -> messages.FromWorker:
    """What a worker sent. ProtocolError for anything else."""
    message: messages.FromWorker = _decode(_from_worker, frame)
    return message


def decode_from_coordinator(frame: bytes) -> messages.FromCoordinator:
    """What the coordinator sent. ProtocolError for anything else."""
    message: messages.FromCoordinator = _decode(_from_coordinator, frame)
    return message
