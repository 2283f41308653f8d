"""What is to be copied: frozen, validated values. Pure."""

from __future__ import annotations

import msgspec

from mpconv.units import MiB

MAX_REQUESTS = 1024
MAX_SPARSE = 16 * MiB
RETRY_SECONDS = 300.0
"""What `--retry-for` is when it is not given."""
DROP_SECONDS = 30.0
"""The same of `--drop-after`."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image lies: a part of a byte store, all of it as a rule; offset and size in bytes.

    `direct`: past the page cache, where there is one. `shared`: whoever else has it open, QEMU's locks are not asked.
    `format`: raw or qcow2, None when nobody said: then its first bytes tell. `snapshot`: the internal one that is
    meant, by id or name. `backing`, `data_file`: the files that the image is made of besides, once that is found out.

    `beneath`: the directory in which alone it may be opened, whatever links there are. `marks`: by what the store is
    known that somebody opened here before; who opens it again must find the same, as far as it finds anything of it.
    """

    url: str
    offset: int = 0
    size: int | None = None
    direct: bool = False
    shared: bool = False
    format: str | None = None
    snapshot: str | None = None
    backing: Place | None = None
    data_file: Place | None = None
    beneath: str | None = None
    marks: dict[str, str] = {}

    def resolved(
        self, fmt: str, marks: dict[str, str], *, backing: Place | None = None, data_file: Place | None = None
    ) -> Place:
        """The same place with what was found out."""
        return msgspec.structs.replace(self, format=fmt, marks=marks, backing=backing, data_file=data_file)

    def marked(self, marks: dict[str, str]) -> Place:
        """The same place, of which it is known now what lies there."""
        return msgspec.structs.replace(self, marks=marks)


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What an image that is opened may open besides itself; nothing, unless the user allows it.

    `backing`: None: no backing file; else the directories it may lie in, "" for that of the image itself.
    `data_file`: the same of an external data file; True is short for [""]. It is written only in a directory that has a
    name.
    """

    backing: list[str] | None = None
    data_file: list[str] | bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data_file, bool):
            msgspec.structs.force_setattr(self, "data_file", [""] if self.data_file else None)


NO_TRUST = Trust()


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
