"""What is to be copied: frozen, validated values. Pure."""

from __future__ import annotations

import msgspec

from mpconv.units import MiB

MAX_REQUESTS = 1024
MAX_SPARSE = 16 * MiB


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One copy. URLs may carry credentials, so a Job is never printed; sizes are bytes."""

    id: int
    source: str
    targets: list[str]
    size: int
    in_order: bool
    sparse_size: int
    zero_initialised: bool
    requests: int
    durable: bool
    """Whether each target is flushed before the job counts as done (every cache mode but unsafe)."""
    buffer_size: int = 2 * MiB
    lease_size: int = 16 * MiB
