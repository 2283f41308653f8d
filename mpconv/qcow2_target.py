"""A qcow2 image as the target of a copy: made anew, or written into."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import msgspec
from msgspec.structs import replace

from mpconv import transports
from mpconv.errors import MpconvError
from mpconv.formats.image import Image
from mpconv.formats.opening import How, open_source, size_of
from mpconv.formats.qcow2.entries import SUBCLUSTERS
from mpconv.formats.qcow2.image import read_metadata
from mpconv.formats.qcow2.kept import KeptEntries
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.rewriter import Rewriter, Tail, load
from mpconv.formats.qcow2.writer import Writer
from mpconv.formats.trust import combined, data_place
from mpconv.job import Clusters, Place
from mpconv.options import Options
from mpconv.target import Left, Target, open_store, too_small
from mpconv.transports.base import REMOVED, Access, Opening, Transport, cannot_open
from mpconv.transports.retrying import Tell
from mpconv.units import SECTOR, align_down, align_up


async def make(
    source: Image, place: Place, options: Options, made: Qcow2Options, tell: Tell, left: Left | None = None
) -> Target:
    """A new image, or one that an earlier run began."""
    if left is not None:
        options = replace(options, create=False)
    backing_size = await _backing_size(place, made)
    layout = Layout(source.size, made, backing_size=backing_size)
    data_file = made.data_file is not None
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=_reserved(made), growing=True)
    async with AsyncExitStack() as opened:
        store = await open_store(source, place, options, 0 if data_file else layout.reserved, opening, tell)
        opened.push_async_callback(store.close)
        opened.push_async_exit(partial(_discard, store))
        data: Transport | None = None
        workers_place = place
        if made.data_file is not None:
            workers_place = msgspec.structs.replace(place, url=combined(place.url, made.data_file))
            data = await open_store(source, workers_place, options, source.size, opening, tell)
            opened.push_async_callback(data.close)
            opened.push_async_exit(partial(_discard, data))
        written = data or store
        layout.unit = _unit(written, made.cluster_size)
        stores_zeros = (
            (made.version == 2 and backing_size is not None)
            or not options.sparse_size
            or made.preallocation == "full"
            or ((layout.preallocated or data is not None) and not written.zero_initialised)
        )
        if left is not None:
            stores_zeros = not left.zero_initialised
            KeptEntries(layout).restore(left.parts, left.done, left.places)
        writer = Writer(store, layout, durable=options.cache.flushes)
        whole = False
        if left is None:
            await store.insist(writer.begin)
        else:
            whole = await writer.is_finished()
        target = _target(workers_place, data, writer, options, stores_zeros=stores_zeros, whole=whole)
        opened.pop_all()
    return target


async def existing(source: Image, place: Place, options: Options, tell: Tell) -> Target:
    """An image that is there already (`-n`)."""
    opening = Opening(direct=place.direct, locked=not place.shared, growing=True)
    async with AsyncExitStack() as opened:
        store = await open_store(source, place, options, 0, opening, tell)
        opened.push_async_callback(store.close)
        data: Transport | None = None
        metadata = await read_metadata(store)
        header = metadata.header
        size = align_down(header.size, SECTOR)
        if size < source.size:
            raise too_small(store, size, source)
        workers_place = place
        if header.external_data:
            workers_place = data_place(place, header.data_file, options.trust)
            data = await transports.open_place(workers_place, Access.WRITE, locked=True)
            opened.push_async_callback(data.close)
        zeros, durable = options.target_is_zero, options.cache.flushes
        writer = await load(store, metadata, source.size, reads_as_zeros=zeros, durable=durable)
        writer.layout.unit = _unit(data or store, header.cluster_size)
        tail = await _tail(place, options, source.size, min(size, align_up(source.size, header.cluster_size)))
        if tail is not None:
            writer.tail = tail
            writer.layout.kept = tail.start // header.cluster_size
        stores_zeros = (
            not options.sparse_size or header.external_data or (header.version == 2 and header.backing_file is not None)
        )
        target = _target(workers_place, data, writer, options, stores_zeros=stores_zeros)
        await store.insist(writer.begin)
        opened.pop_all()
    return target


async def _discard(store: Transport, kind: object, error: BaseException | None, _: object) -> None:
    if error is not None and await store.discard() and isinstance(error, MpconvError) and REMOVED not in error.why:
        error.why += f" (the target is incomplete{REMOVED})"


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
    whole: bool = False,
) -> Target:
    layout = writer.layout
    made = layout.options
    clusters = Clusters(
        size=made.cluster_size,
        part=made.cluster_size // (SUBCLUSTERS if made.extended_l2 else 1),
        compression=made.compression_type if options.compress else None,
        level=options.compression_level,
        stores_zeros=stores_zeros,
        unit=layout.unit,
        in_place=layout.preallocated or data is not None,
    )
    return Target(
        place=place,
        store=writer.store,
        zero_initialised=not stores_zeros,
        data=data,
        writer=writer,
        clusters=clusters,
        whole=whole,
    )


async def _tail(place: Place, options: Options, start: int, end: int) -> Tail | None:
    """None when there is nothing but zeros."""
    if start >= end:
        return None
    content = bytearray(end - start)
    image = await open_source([place], How(trust=options.trust))
    try:
        await image.read_into(start, memoryview(content))
    finally:
        await image.close()
    return Tail(start, bytes(content)) if any(content) else None


def _reserved(made: Qcow2Options) -> str:
    """How room is taken up beforehand; by "full" every byte is written anyway."""
    return "falloc" if made.preallocation == "falloc" else "off"


async def _backing_size(place: Place, made: Qcow2Options) -> int | None:
    if made.backing_file is None:
        return None
    backing = Place(url=combined(place.url, made.backing_file), format=made.backing_fmt)
    try:
        return await size_of(backing)
    except MpconvError as error:
        raise cannot_open(transports.redacted(place.url), f"Could not open backing file: {error}") from error
