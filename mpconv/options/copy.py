"""How to copy. Pure."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.limits import DROP_SECONDS, RETRY_SECONDS
from mpconv.model.place import NO_TRUST, Trust
from mpconv.options.cache import CACHE_MODES, CacheMode
from mpconv.protocol.keys import Listening


class Options(Struct, frozen=True, kw_only=True):
    """How to copy; sizes in bytes.

    `requests` and `workers`: None for what suits the image and the machine. `create`: make the target anew.
    `target_is_zero`: it exists and reads as zeros. `rate`: bytes a second, 0 for no limit. `shared`: a program may
    have the source open. `salvage`: what cannot be read becomes zeros. `offload`: have data copied where it lies.
    `probe_target`: nobody said of which format the target is. `refusal`: why it cannot be, said once the sources are
    open, as qemu-img does. `target_format`: raw or qcow2. `qcow2`: how a qcow2 target is made, None for raw.
    `compression_level`: None for the codec's own. `snapshot`: the source's internal snapshot to copy, by id or name, or
    as `snapshot.id=,snapshot.name=`. `trust`: what a source may open besides. `retry_for`: seconds for which a server
    that does not answer is tried again, 0 for not at all. `drop_after`: the same of one of several targets, while the
    others wait for it. `digest`: tell that of what was read. `verify`: the share of the target that is read back and
    compared, above 0 and at most 1, or None. `verify_source`: where the sources' hole maps named zeros they are read
    too, at the end, and must have zeros. `hole_map`: what the sources' servers and file systems say of holes is
    believed; else sources are read whole. `listening`: where workers of other hosts may join; then `workers` may be 0.
    `refuse_empty`: a source without a byte is an error, and not only a warning. `allow_same_image`: source and target,
    or two targets, that are probably one image under two names are two: somebody knows better.
    """

    in_order: bool = True
    sparse_size: int = 4096
    create: bool = True
    target_is_zero: bool = False
    preallocation: str = "off"
    requests: int | None = None
    workers: int | None = None
    cache: CacheMode = CACHE_MODES["writeback"]
    rate: int = 0
    shared: bool = False
    salvage: bool = False
    offload: bool = False
    probe_target: bool = False
    refusal: str | None = None
    target_format: str = "raw"
    qcow2: Qcow2Options | None = None
    compress: bool = False
    compression_level: int | None = None
    snapshot: str | None = None
    trust: Trust = NO_TRUST
    retry_for: float = RETRY_SECONDS
    drop_after: float = DROP_SECONDS
    digest: bool = False
    verify: float | None = None
    verify_source: bool = False
    hole_map: bool = True
    listening: Listening | None = None
    refuse_empty: bool = False
    allow_same_image: bool = False

    @property
    def digests(self) -> bool:
        """Whether digests are taken of what passes."""
        return self.digest or self.verify is not None or self.verify_source

    def whole(self) -> Options:
        """With all that is left open said: a new qcow2 target of which nothing was said is made as qemu-img does."""
        if self.target_format == "qcow2" and self.create and self.qcow2 is None:
            return replace(self, qcow2=Qcow2Options())
        return self
