"""Limits of what may be asked for, and what holds when nobody says. Pure."""

from __future__ import annotations

from mpconv.model.units import MiB

MAX_REQUESTS = 1024
MAX_SPARSE = 16 * MiB
RETRY_SECONDS = 300.0
"""What `--retry-for` is when it is not given."""
DROP_SECONDS = 30.0
"""The same of `--drop-after`."""
