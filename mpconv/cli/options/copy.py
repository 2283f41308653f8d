"""Options that convert and deploy have alike, one by one: each command has an order of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from mpconv.cli.options.types import Requests, Share, Size, Snapshot, SparseSize, last_of
from mpconv.options.cache import CACHE_MODES

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

oob_option = click.option("-W", "--oob-writes", is_flag=True, help="Write out of order: faster.")
parallel_option = click.option(
    "-m",
    "--parallel",
    type=Requests(),
    multiple=True,
    callback=last_of,
    help="Buffers in flight, over all workers (default: 4 a worker, at least 8).",
)
workers_option = click.option(
    "--workers", type=click.IntRange(0, 256), help="Worker processes (default: by cores and size, at most 8)."
)
sparse_option = click.option(
    "-S",
    "--sparse-size",
    type=SparseSize(),
    multiple=True,
    callback=last_of,
    help="Shortest zero run to look for, default 4k; 0: none.",
)
target_cache_option = click.option(
    "-t", "--target-cache", metavar="MODE", default="writeback", help=f"{', '.join(CACHE_MODES)}; default writeback."
)
salvage_option = click.option(
    "--salvage", is_flag=True, help="What cannot be read becomes zeros; the lost ranges are listed."
)
same_image_option = click.option(
    "--allow-same-image", is_flag=True, help="Images that are probably one under two names are two: you know better."
)
progress_option = click.option(
    "-p", "--progress", is_flag=True, help="Show completed bytes; --progress=json: as JSON lines."
)
progress_kind_option = click.option("--progress-kind", hidden=True)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Say how many workers there are and why, and how zeros are made."
)
snapshot_option = click.option(
    "-l", "--snapshot", type=Snapshot(), metavar="SNAP", help="Copy an internal snapshot (qcow2)."
)
digest_option = click.option(
    "--digest", is_flag=True, help="At the end print the digest of what was copied, as mpconv checksum does."
)
journal_option = click.option(
    "--journal", metavar="FILE", help="Keep in FILE what is done and durable: mpconv resume FILE goes on."
)
trust_journal_option = click.option(
    "--trust-journal", is_flag=True, help="Believe a journal although others own it or may write to it."
)


def rate_option(whose: str) -> Callable[[_Decorated], _Decorated]:
    """-r; `whose` bytes are counted."""
    return click.option(
        "-r",
        "--rate-limit",
        type=Size("rate limit"),
        multiple=True,
        callback=last_of,
        help=f"Bytes written per second, {whose}.",
    )


def verify_option(what: str) -> Callable[[_Decorated], _Decorated]:
    """--verify of `what`."""
    return click.option(
        "--verify",
        type=Share(),
        metavar="[=all|sample:N%|source]",
        help=f"Read {what} back and compare it with what was read of the source: all, or a sample; "
        "source: all, and read the source where its hole map named zeros.",
    )
