"""What a copy writes into: a byte store as it is, or an image made in one."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mpconv import transports
from mpconv.errors import Fatal, InUse, MpconvError, NoSuchImage, UsageError
from mpconv.formats.image import Image
from mpconv.formats.opening import How, found_format, open_source, size_of
from mpconv.formats.qcow2.image import read_metadata
from mpconv.formats.qcow2.layout import Layout
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.formats.qcow2.rewriter import Rewriter, Tail, load
from mpconv.formats.qcow2.writer import Writer
from mpconv.formats.trust import combined, data_place
from mpconv.job import Clusters, Place
from mpconv.options import Options
from mpconv.transports.base import Access, Opening, Transport
from mpconv.units import SECTOR, align_down, align_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`place`: what the workers write into; `store`: the same, or the file of an image whose data lies elsewhere.

    `zero_initialised`: what nobody writes reads as zeros. `writer` and `clusters`: of an image that is made.
    """

    place: Place
    store: Transport
    zero_initialised: bool
    data: Transport | None = None
    writer: Writer | Rewriter | None = None
    clusters: Clusters | None = None

    @property
    def written(self) -> Transport:
        """Where the guest's bytes go."""
        return self.data or self.store

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
        """Every byte is written, and flushed if `durable`: now the tables, and the last flush."""
        if self.writer is not None:
            await self.writer.finish()
        elif durable:
            await self.store.flush()

    async def close(self) -> None:
        """Give the connections back."""
        await self.store.close()
        if self.data is not None:
            await self.data.close()


async def open_target(source: Image, place: Place, options: Options) -> Target:
    """The target, made anew unless `create` is off. Fatal when it is too small or a source itself."""
    if options.target_format == "qcow2" and options.qcow2 is not None:
        if options.create:
            return await _make_qcow2(source, place, options, options.qcow2)
        return await _existing_qcow2(source, place, options)
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=options.preallocation)
    store = await _open_store(source, place, options, source.size, opening)
    if options.probe_target:
        try:
            found = await found_format(store)
            if found == "raw" and options.compress:
                raise UsageError("Compression not supported for this file format")
        except BaseException:
            await store.close()
            raise
        if found == "qcow2":
            await store.close()
            return await _existing_qcow2(source, place, options)
    if store.fixed_size and store.writable < source.size:
        await store.close()
        raise _too_small(store, store.size, source)
    zeros = options.sparse_size > 0 and (options.target_is_zero or (options.create and store.zero_initialised))
    return Target(place=place, store=store, zero_initialised=zeros)


def _too_small(store: Transport, size: int, source: Image) -> UsageError:
    return UsageError(f"output file is smaller than input file ({size} of {source.size} bytes) in '{store.name}'")


async def _make_qcow2(source: Image, place: Place, options: Options, made: Qcow2Options) -> Target:
    backing_size = await _backing_size(place, made)
    old = made.version == 2
    layout = Layout(
        source.size,
        made,
        backing_size=backing_size,
    )
    data_file = made.data_file is not None
    opening = Opening(direct=place.direct, locked=not place.shared, preallocation=_reserved(made), growing=True)
    store = await _open_store(source, place, options, 0 if data_file else layout.reserved, opening)
    data: Transport | None = None
    try:
        workers_place = place
        if made.data_file is not None:
            workers_place = msgspec.structs.replace(place, url=combined(place.url, made.data_file))
            data = await _open_store(source, workers_place, options, source.size, opening)
        written = data or store
        blocks = written.rewrites or SECTOR
        # Clusters smaller than a block leave no room to pad one: then one worker writes, and rewrites blocks in turn.
        layout.unit = max(SECTOR, blocks) if made.cluster_size % blocks == 0 else SECTOR
        stores_zeros = (
            (old and backing_size is not None)
            or not options.sparse_size
            or made.preallocation == "full"
            or (layout.preallocated and not written.zero_initialised)
        )
        clusters = Clusters(
            size=made.cluster_size,
            part=made.cluster_size // (32 if made.extended_l2 else 1),
            compression=made.compression_type if options.compress else None,
            level=options.compression_level,
            stores_zeros=stores_zeros,
            unit=layout.unit,
            in_place=layout.preallocated or data is not None,
        )
        writer = Writer(store, layout, durable=options.cache.flushes)
        await writer.begin()
    except BaseException:
        await store.close()
        if data is not None:
            await data.close()
        raise
    return Target(
        place=workers_place,
        store=store,
        zero_initialised=not stores_zeros,
        data=data,
        writer=writer,
        clusters=clusters,
    )


async def _existing_qcow2(source: Image, place: Place, options: Options) -> Target:
    opening = Opening(direct=place.direct, locked=not place.shared, growing=True)
    store = await _open_store(source, place, options, 0, opening)
    data: Transport | None = None
    try:
        metadata = await read_metadata(store)
        header = metadata.header
        size = align_down(header.size, SECTOR)
        if size < source.size:
            raise _too_small(store, size, source)
        workers_place = place
        if header.external_data:
            workers_place = data_place(place, header.data_file, options.trust)
            data = await transports.open_place(workers_place, Access.WRITE, locked=True)
        writer = await load(store, metadata, source.size, reads_as_zeros=options.target_is_zero)
        writer.durable = options.cache.flushes
        written = data or store
        writer.layout.unit = max(SECTOR, written.rewrites)
        tail = await _tail(place, options, source.size, min(size, align_up(source.size, header.cluster_size)))
        if tail is not None:
            writer.tail = tail
            writer.layout.kept = tail.start // header.cluster_size
        clusters = Clusters(
            size=header.cluster_size,
            part=header.cluster_size // (32 if header.extended_l2 else 1),
            compression=header.compression if options.compress else None,
            level=options.compression_level,
            stores_zeros=not options.sparse_size
            or header.external_data
            or (header.version == 2 and header.backing_file is not None),
            unit=writer.layout.unit,
            in_place=header.external_data,
        )
        await writer.begin()
    except BaseException:
        await store.close()
        if data is not None:
            await data.close()
        raise
    return Target(
        place=workers_place,
        store=store,
        zero_initialised=not clusters.stores_zeros,
        data=data,
        writer=writer,
        clusters=clusters,
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
        raise Fatal(f"{transports.redacted(place.url)}: error while converting qcow2: {error}") from error


async def _open_store(source: Image, place: Place, options: Options, size: int, opening: Opening) -> Transport:
    """The store at a place, made anew with `size` bytes unless `create` is off; refused when it is a source itself."""
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
        if same is not None:
            await existing.close()
            raise same
        if not options.create or not existing.creatable:
            return existing
        await existing.close()
    return await transports.connect(place.url, Access.WRITE, create_size=size, opening=opening)


def _same(source: Image, target: Transport) -> UsageError | None:
    for store in source.stores:
        if store.identity == target.identity:
            return UsageError(f"source and target are the same image: '{store.name}'")
    return None
