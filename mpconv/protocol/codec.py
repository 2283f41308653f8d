"""Message <-> frame. Anything that is not a message is a ProtocolError. Pure.

Texts travel as UTF-8. One that is none (a name of other bytes, with lone surrogates for them) travels as U+10FFFF,
which stands for nothing, and behind it a character below U+0100 for each of its bytes. So does one that begins with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mpconv.model.errors import ProtocolError
from mpconv.protocol import messages

MAX_FRAME = 1 << 20

_ESCAPE = "\U0010ffff"
_ESCAPED = _ESCAPE.encode()
_encoder = msgspec.msgpack.Encoder()
_from_worker: Any = msgspec.msgpack.Decoder(messages.FromWorker)
_from_coordinator: Any = msgspec.msgpack.Decoder(messages.FromCoordinator)


def encode(message: messages.FromWorker | messages.FromCoordinator) -> bytes:
    """One frame."""
    try:
        frame = _encoder.encode(message)
    except UnicodeEncodeError:
        frame = _ESCAPED
    if _ESCAPED in frame:
        return _encoder.encode(_each_text(msgspec.to_builtins(message, builtin_types=(bytes,)), _escaped))
    return frame


def _escaped(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ESCAPE + text.encode(errors="surrogateescape").decode("latin-1")
    return _ESCAPE + text.encode().decode("latin-1") if text.startswith(_ESCAPE) else text


def _unescaped(text: str) -> str:
    return text[1:].encode("latin-1").decode(errors="surrogateescape") if text.startswith(_ESCAPE) else text


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    return [_each_text(inner, change) for inner in value] if isinstance(value, list) else value


def _decode(decoder: Any, frame: bytes) -> Any:
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"a frame of {len(frame)} bytes is over the limit of {MAX_FRAME}")
    try:
        if _ESCAPED in frame:
            return msgspec.convert(_each_text(msgspec.msgpack.decode(frame), _unescaped), decoder.type)
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from error


def decode_from_worker(frame: bytes) -> messages.FromWorker:
    """What a worker sent. ProtocolError for anything else."""
    message: messages.FromWorker = _decode(_from_worker, frame)
    return message


def decode_from_coordinator(frame: bytes) -> messages.FromCoordinator:
    """What the coordinator sent. ProtocolError for anything else."""
    message: messages.FromCoordinator = _decode(_from_coordinator, frame)
    return message
