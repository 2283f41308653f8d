"""Errors as messages, and messages as errors again: of the same class, so that who acts on it can. Pure."""

from __future__ import annotations

from mpconv.model.errors import KINDS, Fatal, MpconvError, kind_of
from mpconv.protocol.messages import Failed, TargetFailed


def failed(job: int, error: MpconvError) -> Failed:
    """What a worker says of an error that ends its work."""
    return Failed(job, error.why, error.operation, error.image, error.offset, kind_of(error), error.reason)


def target_failed(job: int, target: int, error: MpconvError) -> TargetFailed:
    """The same, of one of several targets."""
    return TargetFailed(
        job, target, error.why, error.operation, error.image, error.offset, kind_of(error), error.reason
    )


def error_of(message: Failed | TargetFailed) -> Fatal:
    """The error that was told of. A kind that is none of ours says nothing: Fatal."""
    kind = KINDS.get(message.kind, Fatal)
    error = kind(message.why, operation=message.operation, image=message.image, offset=message.offset)
    error.reason = message.reason
    return error
