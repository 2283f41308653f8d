"""What a copy writes into: a byte store as it is, or an image made in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from mpconv import transports
from mpconv.formats.base import Image
from mpconv.model.errors import Fatal, InUse, NoSuchImage, UsageError
from mpconv.model.place import Place
from mpconv.model.ranges import Ranges
from mpconv.options.copy import Options
from mpconv.protocol.job import Clusters
from mpconv.transports import sameness
from mpconv.transports.base import Access, Judge, Opening, Transport
from mpconv.transports.retry import Retry, Tell

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
    an earlier run finished it. `base`: the backing file of a new image: nobody else is to write to it meanwhile.
    """

    place: Place
    store: Transport
    zero_initialised: bool
    data: Transport | None = None
    writer: Writer | Rewriter | None = None
    clusters: Clusters | None = None
    whole: bool = False
    base: Image | None = None

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
            await self.store.retried(self.writer.finish)
        elif durable:
            await self.store.retried(self.store.flush)

    async def discard(self) -> bool:
        """Remove what this run made and did not complete, so that nobody takes it for an image; whether the image was,
        of whose files some may have been there before. To be called when nobody writes any more.
        """
        for store in self.stores:
            if store is not self.store:
                await store.discard()
        return await self.store.discard()

    async def close(self) -> None:
        """Give the connections back."""
        for store in self.stores:
            await store.close()
        if self.base is not None:
            await self.base.close()


async def open_raw(
    source: Image,
    place: Place,
    options: Options,
    tell: Tell,
    left: Left | None = None,
    *,
    begun: bool = False,
    found: Transport | None = None,
) -> Target:
    """A raw target, made anew unless `create` is off or it is `left`. Fatal when it is too small or a source itself.
    `found`: it is open already, and is not made anew.
    """
    if left is not None:
        options = replace(options, create=False)
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=options.preallocation)
    begun = begun or left is not None
    store = await open_store(source, place, options, source.size, opening, tell, begun=begun, found=found)
    if store.fixed_size and store.writable < source.size:
        await store.close()
        raise too_small(store, store.size, source)
    zeros = options.sparse_size > 0 and (options.target_is_zero or (options.create and store.zero_initialised))
    if left is not None:
        zeros = left.zero_initialised
    return Target(place=place.marked(store.marks), store=store, zero_initialised=zeros)


def too_small(store: Transport, size: int, source: Image) -> UsageError:
    """qemu-img's words, and how much too small."""
    return UsageError(f"output file is smaller than input file ({size} of {source.size} bytes) in '{store.name}'")


async def open_store(
    source: Image,
    place: Place,
    options: Options,
    size: int,
    opening: Opening,
    tell: Tell,
    *,
    begun: bool = False,
    also: Judge | None = None,
    found: Transport | None = None,
) -> Transport:
    """The store at a place, made anew with `size` bytes unless `create` is off; refused when it is a source itself.
    `tell` hears when it does not answer later. `begun`: as check_apart's. `also`: what else may refuse it. `found`: as
    open_raw's.
    """

    async def judge(store: Transport) -> None:
        """As with qemu-img, nothing onto itself is right."""
        if source.size or not options.shared:
            await check_apart(source, store, options, begun=begun)
        if also is not None:
            await also(store)

    store = await _open_store(place, options, size, replace(opening, judge=judge), judge, found)
    return transports.remade(
        store, place.marked(store.marks), growing=opening.growing, retry=Retry(options.retry_for), tell=tell
    )


async def _open_store(
    place: Place, options: Options, size: int, opening: Opening, judge: Judge, found: Transport | None
) -> Transport:
    """What is there is judged before it is written to, and again when it is replaced: it may be another one by then."""
    existing = found
    retry = Retry(options.retry_for)
    try:
        if existing is None:
            existing = await transports.open_place(
                place, Access.WRITE, locked=True, growing=opening.growing, retry=retry
            )
    except NoSuchImage:
        if not options.create:
            raise
    except InUse:
        existing = await transports.open_place(place, Access.WRITE)
        try:
            await judge(existing)
        finally:
            await existing.close()
        raise
    except Fatal:
        if not options.create or not transports.is_local(place.url):
            raise  # of a file the attempt to make it tells what is wrong, as with qemu-img
    if existing is not None:
        try:
            await judge(existing)
        except BaseException:
            await existing.close()
            raise
        if not options.create or not existing.creatable:
            return existing
        await existing.close()
    seen = existing.marks if existing is not None else {}
    opening = replace(opening, judge=judge, replaces=seen, patience=transports.patience_of(retry))
    return await transports.connect(place.url, Access.WRITE, create_size=size, opening=opening)


async def check_apart(source: Image, target: Transport, options: Options, *, begun: bool = False) -> None:
    """UsageError when the target is the source, or one of the files that it is made of, under whatever name. `begun`:
    an earlier run began to copy the one to the other, so that it counts for nothing that their contents are the same.
    """
    [*stores] = source.stores
    plain = len(stores) == 1 and source.format == "raw" and stores[0].whole is stores[0] and target.whole is target
    harmless = plain and options.target_format == "raw" and not options.probe_target
    allowed = options.allow_same_image
    await sameness.check_apart(stores, target, allowed=allowed, begun=begun, harmless=harmless)


async def check_source(source: Image, targets: Sequence[Transport], options: Options) -> None:
    """Once the targets are made: Fatal when that changed the source, of which they are another name then. A source that
    somebody writes to (-U) may have changed by itself: of that one only what it is now counts.
    """
    if options.shared and not source.size:
        return
    looks = (check_apart(source, target, options, begun=True) for target in targets)
    for error in await asyncio.gather(*looks, return_exceptions=True):
        if error is not None:
            raise error
    if options.shared:
        return
    found = await sameness.changed(source.stores, exactly=True)
    if found is not None:
        names = " or ".join(f"'{target.name}'" for target in targets[:3])
        why = f"the source '{found.name}' changed when the target was made: {names} may be another name of it"
        raise Fatal(f"{why}, or somebody writes to it (-U takes that)")


async def check_end(source: Image, options: Options, warn: Callable[[str], None]) -> None:
    """When all is copied: Fatal when the source is not what it was. With -U that is expected, and told."""
    found = await sameness.changed(source.stores)
    if found is None:
        return
    why = f"the source '{found.name}' was changed while it was copied: the copy may be half old and half new"
    if options.shared:
        warn(why)
        return
    raise Fatal(f"{why}: see who writes to it, and begin anew (-U takes a source that is written to)")
