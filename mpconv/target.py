"""What a copy writes into: a byte store as it is, or an image made in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from mpconv import transports
from mpconv.errors import Fatal, InUse, NoSuchImage, UsageError
from mpconv.extent import Ranges
from mpconv.formats.image import Image
from mpconv.job import Clusters, Place
from mpconv.options import Options
from mpconv.transports.base import Access, Opening, Transport
from mpconv.transports.retrying import Retry, Tell

if TYPE_CHECKING:
    from mpconv.formats.qcow2.rewriter import Rewriter
    from mpconv.formats.qcow2.writer import Writer


class Left(Struct, frozen=True, kw_only=True):
    """A target as an earlier run left it: `done` is written and durable.

    `zero_initialised`: it read as zeros when that run began. So it does still wherever the source has zeros: what a
    write left that did not end, or was not made durable, are the source's bytes, since that has not changed.
    `parts`, `places`: of a qcow2 image, its entries as KeptEntries has them, and where it ended.
    """

    zero_initialised: bool
    done: Ranges
    places: int
    parts: dict[int, bytes]


class Target(Struct, frozen=True, kw_only=True):
    """`place`: what the workers write into; `store`: the same, or the file of an image whose data lies elsewhere.

    `zero_initialised`: what nobody writes reads as zeros. `writer` and `clusters`: of an image that is made. `whole`:
    an earlier run finished it.
    """

    place: Place
    store: Transport
    zero_initialised: bool
    data: Transport | None = None
    writer: Writer | Rewriter | None = None
    clusters: Clusters | None = None
    whole: bool = False

    @property
    def written(self) -> Transport:
        """Where the guest's bytes go."""
        return self.data or self.store

    @property
    def stores(self) -> list[Transport]:
        """All that is written."""
        return [self.store] if self.data is None else [self.store, self.data]

    @property
    def block(self) -> int:
        """No two workers write into one block of so many guest bytes."""
        if self.clusters is not None:
            return self.clusters.size
        return self.written.rewrites or 1

    @property
    def divisible(self) -> bool:
        """Whether several workers may write at a time."""
        rewrites = self.written.rewrites
        return bool(rewrites) and (self.clusters is None or self.clusters.size % rewrites == 0)

    async def finish(self, *, durable: bool) -> None:
        """Every byte is written, and flushed if `durable`: now the tables, and the last flush. When the connection was
        lost, as it may be while the workers copy for hours, another one is made and all of this done by it.
        """
        if self.writer is not None:
            await self.store.insist(self.writer.finish)
        elif durable:
            await self.store.insist(self.store.flush)

    async def discard(self) -> bool:
        """Remove what this run made and did not complete, so that nobody takes it for an image; whether any of it was.
        To be called when nobody writes any more.
        """
        gone = [await store.discard() for store in self.stores]
        return any(gone)

    async def close(self) -> None:
        """Give the connections back."""
        for store in self.stores:
            await store.close()


async def open_raw(source: Image, place: Place, options: Options, tell: Tell, left: Left | None = None) -> Target:
    """A raw target, made anew unless `create` is off or it is `left`. Fatal when it is too small or a source itself."""
    if left is not None:
        options = replace(options, create=False)
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=options.preallocation)
    store = await open_store(source, place, options, source.size, opening, tell)
    if store.fixed_size and store.writable < source.size:
        await store.close()
        raise too_small(store, store.size, source)
    zeros = options.sparse_size > 0 and (options.target_is_zero or (options.create and store.zero_initialised))
    if left is not None:
        zeros = left.zero_initialised
    return Target(place=place, store=store, zero_initialised=zeros)


def too_small(store: Transport, size: int, source: Image) -> UsageError:
    """qemu-img's words, and how much too small."""
    return UsageError(f"output file is smaller than input file ({size} of {source.size} bytes) in '{store.name}'")


async def open_store(
    source: Image, place: Place, options: Options, size: int, opening: Opening, tell: Tell
) -> Transport:
    """The store at a place, made anew with `size` bytes unless `create` is off; refused when it is a source itself.
    `tell` hears when it does not answer later.
    """
    store = await _open_store(source, place, options, size, opening)
    return transports.remade(store, place, growing=opening.growing, retry=Retry(options.retry_for), tell=tell)


async def _open_store(source: Image, place: Place, options: Options, size: int, opening: Opening) -> Transport:
    existing: Transport | None = None
    try:
        existing = await transports.open_place(place, Access.WRITE, locked=True, growing=opening.growing)
    except NoSuchImage:
        if not options.create:
            raise
    except InUse:
        existing = await transports.open_place(place, Access.WRITE)
        same = _same(source, existing)
        await existing.close()
        if same is not None:
            raise same from None
        raise
    except Fatal:
        if not options.create or not transports.is_local(place.url):
            raise  # of a file the attempt to make it tells what is wrong, as with qemu-img
    if existing is not None:
        same = _same(source, existing)
        if same is not None and (source.size or not options.shared):  # as with qemu-img, nothing onto itself is right
            await existing.close()
            raise same
        if not options.create or not existing.creatable:
            return existing
        await existing.close()
    return await transports.connect(place.url, Access.WRITE, create_size=size, opening=opening)


def check_other(source: Image, target: Transport) -> None:
    """UsageError when the target is the source, or one of the files that it is made of."""
    error = _same(source, target)
    if error is not None:
        raise error


def _same(source: Image, target: Transport) -> UsageError | None:
    for store in source.stores:
        if store.identity == target.identity:
            return UsageError(f"source and target are the same image: '{store.name}'")
    return None
