"""A qcow2 image as the target of a copy: made anew, or written into."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import msgspec
from msgspec.structs import replace

from mpconv import transports
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_source
from mpconv.formats.qcow2.entries import SUBCLUSTERS
from mpconv.formats.qcow2.image import read_metadata
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.rewriter import Rewriter, Tail, load
from mpconv.formats.qcow2.saved_entries import KeptEntries
from mpconv.formats.qcow2.writer import Writer
from mpconv.formats.trust import combined, data_place
from mpconv.jobs.copy.target import Left, Target, check_apart, open_store, too_small
from mpconv.model.errors import ImageError, MpconvError
from mpconv.model.place import Place
from mpconv.model.units import SECTOR, align_down, align_up
from mpconv.options.copy import Options
from mpconv.protocol.job import Clusters
from mpconv.transports.base import REMOVED, Access, Judge, Opening, Transport, cannot_open
from mpconv.transports.retry import Retry, Tell


async def make(
    source: Image,
    place: Place,
    options: Options,
    made: Qcow2Options,
    tell: Tell,
    left: Left | None = None,
    *,
    begun: bool = False,
) -> Target:
    """A new image, or one that an earlier run began. `begun`: as open_store's."""
    begun = begun or left is not None
    if left is not None:
        options = replace(options, create=False)
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=_reserved(made), growing=True)
    async with AsyncExitStack() as opened:
        base = await _base(place, made, options)
        backing_size = None if base is None else base.size
        if base is not None and not transports.is_local(base.stores[0].name):  # no locks there, and sessions are few
            await base.close()
            base = None
        if base is not None:
            opened.push_async_callback(base.close)
        layout = Layout(source.size, made, backing_size=backing_size)
        data_file = made.data_file is not None
        reserved = 0 if data_file else layout.reserved
        also = await _judge(source, place, options, opened, begun=begun)
        store = await open_store(source, place, options, reserved, opening, tell, begun=begun, also=also)
        opened.push_async_callback(store.close)
        opened.push_async_exit(partial(_discard, store, True))
        data: Transport | None = None
        workers_place = place
        if made.data_file is not None:
            workers_place = msgspec.structs.replace(place, url=combined(place.url, made.data_file))
            data = await open_store(source, workers_place, options, source.size, opening, tell, begun=begun, also=also)
            opened.push_async_callback(data.close)
            opened.push_async_exit(partial(_discard, data, False))
        written = data or store
        layout.unit = _unit(written, made.cluster_size)
        zeros_end: int | None = None
        stores_zeros = (
            not options.sparse_size
            or made.preallocation == "full"
            or ((layout.preallocated or data is not None) and not written.zero_initialised)
        )
        if made.version == 2 and backing_size is not None and not stores_zeros:
            stores_zeros, zeros_end = True, align_up(backing_size, made.cluster_size)
        if left is not None:
            stores_zeros = not left.zero_initialised
            KeptEntries(layout).restore(left.parts, left.done, left.places)
        writer = Writer(store, layout, durable=options.cache.flushes)
        whole = False
        if left is None:
            await store.retried(writer.begin)
        else:
            whole = await writer.is_finished()
        target = _target(
            workers_place,
            data,
            writer,
            options,
            stores_zeros=stores_zeros,
            zeros_end=zeros_end,
            whole=whole,
            base=base,
        )
        opened.pop_all()
    return target


async def existing(source: Image, place: Place, options: Options, tell: Tell, *, begun: bool = False) -> Target:
    """An image that is there already (`-n`)."""
    opening = Opening(direct=place.direct, locked=not place.shared, growing=True)
    async with AsyncExitStack() as opened:
        also = await _judge(source, place, options, opened, begun=begun)
        store = await open_store(source, place, options, 0, opening, tell, begun=begun, also=also)
        opened.push_async_callback(store.close)
        data: Transport | None = None
        metadata = await read_metadata(store)
        header = metadata.header
        size = align_down(header.size, SECTOR)
        if size < source.size:
            raise too_small(store, size, source)
        workers_place = place
        if header.external_data:
            workers_place = data_place(place.marked(store.marks), header.data_file, options.trust, written=True)
            data = await _open_data(source, store, workers_place, options)
            opened.push_async_callback(data.close)
        zeros, durable = options.target_is_zero, options.cache.flushes
        writer = await load(store, metadata, source.size, reads_as_zeros=zeros, durable=durable)
        writer.layout.unit = _unit(data or store, header.cluster_size)
        tail = await _tail(
            place.marked(store.marks), options, source.size, min(size, align_up(source.size, header.cluster_size))
        )
        writer.data = data
        if tail is not None and (data is not None or any(tail.content)):
            writer.tail = tail
            writer.layout.kept = tail.start // header.cluster_size
        stores_zeros = (
            not options.sparse_size or header.external_data or (header.version == 2 and header.backing_file is not None)
        )
        target = _target(workers_place, data, writer, options, stores_zeros=stores_zeros)
        await store.retried(writer.begin)
        opened.pop_all()
    return target


async def _discard(store: Transport, told: bool, kind: object, error: BaseException | None, _: object) -> None:
    if error is None:
        return
    removed = REMOVED if await store.discard() else ""
    if (
        told
        and isinstance(error, MpconvError)
        and store.zero_initialised
        and "the target is incomplete" not in error.why
    ):
        error.why += f" (the target is incomplete{removed})"


async def _judge(source: Image, place: Place, options: Options, opened: AsyncExitStack, *, begun: bool) -> Judge | None:
    """Refuses a store that is a part of the backing file that was named. UsageError already here when such a part, or
    what is read otherwise, is to be the data file.
    """
    made = options.qcow2
    if made is None or (made.backing_file is None and made.data_file is None):
        return None
    from mpconv.jobs.copy import lineage  # noqa: PLC0415  (few need it)

    allowed = options.allow_same_image
    layers: list[Transport] = []
    if made.backing_file is not None:
        backing = Place(url=combined(place.url, made.backing_file), format=made.backing_fmt)
        layers = await lineage.layers_of(backing, place, opened)

    async def judge(store: Transport) -> None:
        await lineage.check(store, layers, allowed=allowed, begun=begun)

    if made.data_file is not None and options.create:
        data = Place(url=combined(place.url, made.data_file))
        there = await lineage.check_data_file(place, data, allowed=allowed, begun=begun)
        if there is not None:
            opened.push_async_callback(there.close)
            await check_apart(source, there, options, begun=begun)
            await judge(there)
    return judge


async def _open_data(source: Image, store: Transport, place: Place, options: Options) -> Transport:
    """The data file of the image in `store`, to be written into."""
    data = await transports.open_place(place, Access.READ)
    try:
        if data.identity == store.identity:
            raise cannot_open(store.name, f"the image names itself as its data file: '{data.name}'", ImageError)
        await check_apart(source, data, options)
    finally:
        await data.close()
    retry = Retry(options.retry_for)
    data = await transports.open_place(place.marked(data.marks), Access.WRITE, locked=True, retry=retry)
    if data.fixed_size and data.writable < source.size:
        await data.close()
        raise too_small(data, data.size, source)
    return data


def _unit(store: Transport, cluster_size: int) -> int:
    """Clusters smaller than a block leave no room to pad one: then one worker writes, and rewrites blocks in turn."""
    blocks = store.rewrites or SECTOR
    return max(SECTOR, blocks) if cluster_size % blocks == 0 else SECTOR


def _target(
    place: Place,
    data: Transport | None,
    writer: Writer | Rewriter,
    options: Options,
    *,
    stores_zeros: bool,
    zeros_end: int | None = None,
    whole: bool = False,
    base: Image | None = None,
) -> Target:
    layout = writer.layout
    made = layout.options
    clusters = Clusters(
        size=made.cluster_size,
        part=made.cluster_size // (SUBCLUSTERS if made.extended_l2 else 1),
        compression=made.compression_type if options.compress else None,
        level=options.compression_level,
        stores_zeros=stores_zeros,
        zeros_end=zeros_end,
        unit=layout.unit,
        in_place=layout.preallocated or data is not None,
    )
    return Target(
        place=place.marked((data or writer.store).marks),
        store=writer.store,
        zero_initialised=not stores_zeros,
        data=data,
        writer=writer,
        clusters=clusters,
        whole=whole,
        base=base,
    )


async def _tail(place: Place, options: Options, start: int, end: int) -> Tail | None:
    """None when the copy ends with a cluster, or with the disk."""
    if start >= end:
        return None
    content = bytearray(end - start)
    image = await open_source([place], OpenOptions(trust=options.trust))
    try:
        await image.read_into(start, memoryview(content))
    finally:
        await image.close()
    return Tail(start, bytes(content))


def _reserved(made: Qcow2Options) -> str:
    """How room is taken up beforehand; by "full" every byte is written anyway."""
    return "falloc" if made.preallocation == "falloc" else "off"


async def _base(place: Place, made: Qcow2Options, options: Options) -> Image | None:
    """The backing file of a new image, open and locked as by qemu-img, which heeds no `-U` here. Of what lies below it
    as much as may be opened.
    """
    if made.backing_file is None:
        return None
    backing = Place(url=combined(place.url, made.backing_file), format=made.backing_fmt)
    try:
        try:
            return await open_source([backing], OpenOptions(looking=True, trust=options.trust))
        except ImageError:
            return await open_source([backing], OpenOptions(looking=True, alone=True))
    except MpconvError as error:
        raise cannot_open(transports.redacted(place.url), f"Could not open backing file: {error}") from error
