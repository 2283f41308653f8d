"""What is to be copied: frozen, validated values. Pure."""

from __future__ import annotations

import msgspec

from mpconv.model.place import Place
from mpconv.model.units import MiB


class Clusters(msgspec.Struct, frozen=True, kw_only=True):
    """How the target's format takes guest bytes: whole clusters, wherever the commit token tells.

    `size`: of a cluster in bytes; `part`: the smallest piece of it that is told apart from zeros, a cluster as a rule.
    `compression`: zlib or zstd, None for none, at `level`, None for the usual. `stores_zeros`: zeros are stored like
    data, up to guest byte `zeros_end`, None for the disk's end: behind it they are left out. `unit`: compressed
    clusters that are written together are padded to a multiple of it. `in_place`: every place is as far from the
    guest's byte as any other, and reads as zeros: of a cluster only the data is written.
    """

    size: int
    part: int
    compression: str | None = None
    level: int | None = None
    stores_zeros: bool = False
    zeros_end: int | None = None
    unit: int = 512
    in_place: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One copy. URLs may carry credentials, so a Job is never printed; sizes are bytes.

    `sources`: concatenated, each padded to a whole sector. `compare`: nothing is written; the source and the one
    "target" are read and compared.
    """

    id: int
    sources: list[Place]
    targets: list[Place]
    source_sizes: list[int] = []
    """Of the stores, in bytes, as the coordinator saw them: a worker that sees others must not go on."""
    target_sizes: list[int] = []
    """The same, where the target is only read."""
    size: int
    in_order: bool
    sparse_size: int
    zero_initialised: bool
    requests: int
    """Buffers in flight: over all workers, and in what a worker is sent, its share."""
    durable: bool
    """Whether each target is flushed before the job counts as done (every cache mode but unsafe)."""
    write_through: bool = False
    """Whether each write is flushed before it counts as done (writethrough, directsync)."""
    salvage: bool = False
    """Whether what cannot be read becomes zeros, sector by sector."""
    offload: bool = False
    """Whether data is copied where it lies, as far as that can be."""
    compare: bool = False
    digest: bool = False
    """Whether each lease that is done tells the sums of its blocks. Without targets nothing is written besides."""
    retry_for: float = 0.0
    """Seconds for which a server that does not answer is tried again; 0: not at all."""
    reads_zeros: list[bool] = []
    """Of several targets: which of them read as zeros; `zero_initialised`: they all do."""
    dropped: list[int] = []
    """Numbers of targets that are failed already, from 0: they are left alone."""
    drop_after: float = 0.0
    """Seconds for which the others wait for one of several targets that does not answer, before it is dropped."""
    clusters: Clusters | None = None
    """For a target whose format says where its bytes lie; None: where they are in the guest disk."""
    buffer_size: int = 2 * MiB
    lease_size: int = 16 * MiB
