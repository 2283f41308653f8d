"""What an image is, as `qemu-img info` tells it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from msgspec import Struct

from mpconv.formats import trust
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.formats.qcow2.bitmaps import Bitmap
from mpconv.formats.qcow2.header import CORRUPT, DATA_FILE_RAW, DIRTY, LAZY_REFCOUNTS, Header
from mpconv.formats.qcow2.image import Qcow2Image
from mpconv.formats.qcow2.snapshots import Snapshot
from mpconv.inspection.texts import size_text, tree_lines
from mpconv.model.errors import Fatal, ImageError
from mpconv.model.place import Place, Trust
from mpconv.transports import family_of, redacted
from mpconv.transports.base import cannot_open

_SECOND = 1_000_000_000
_NO_ICOUNT = (1 << 64) - 1


class Qcow2Info(Struct, frozen=True):
    """What only qcow2 images have."""

    header: Header
    snapshots: list[Snapshot]
    bitmaps: list[Bitmap]
    full_backing: str | None

    def specific(self) -> dict[str, object]:
        """In the order in which QEMU's tables have the names."""
        header = self.header
        if header.version < 3:
            return {
                "compat": "0.10",
                "compression-type": header.compression,
                "refcount-bits": header.refcount_bits,
            }
        listed = [
            {"flags": list(bitmap.flags), "name": bitmap.name, "granularity": bitmap.granularity}
            for bitmap in self.bitmaps
        ]
        data_file = {} if header.data_file is None else {"data-file": header.data_file}
        raw = {"data-file-raw": bool(header.autoclear & DATA_FILE_RAW)} if header.external_data else {}
        return {
            "compat": "1.1",
            "compression-type": header.compression,
            "lazy-refcounts": bool(header.compatible & LAZY_REFCOUNTS),
            **({"bitmaps": listed} if listed else {}),
            "refcount-bits": header.refcount_bits,
            **data_file,
            **raw,
            "corrupt": bool(header.incompatible & CORRUPT),
            "extended-l2": header.extended_l2,
        }

    @property
    def dirty(self) -> bool:
        """Its refcounts may be wrong: it was not closed."""
        return bool(self.header.incompatible & DIRTY)

    @property
    def backing(self) -> str | None:
        """As the header has it, without a password."""
        return None if self.header.backing_file is None else redacted(self.header.backing_file)

    def lines(self) -> Iterator[str]:
        """What follows the lines that every image has."""
        yield f"cluster_size: {self.header.cluster_size}"
        if self.dirty:
            yield "cleanly shut down: no"
        if self.backing is not None:
            actual = "" if self.full_backing == self.backing else f" (actual path: {self.full_backing})"
            yield f"backing file: {self.backing}{actual}"
            if self.header.backing_format is not None:
                yield f"backing file format: {self.header.backing_format}"
        if self.snapshots:
            yield "Snapshot list:"
            yield _row("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
            yield from map(_snapshot_line, self.snapshots)
        yield "Format specific information:"
        yield from tree_lines(self.specific(), 1)


def _row(identity: str, name: str, *words: str) -> str:
    """Columns as wide as QEMU's, which counts bytes."""
    return f"{_padded(identity, 9)} {_padded(name, 16)} " + "{:>8}{:>20}{:>13}{:>11}".format(*words)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - len(text.encode(errors="surrogateescape")))


def _icount(snapshot: Snapshot) -> int | None:
    return None if snapshot.icount == _NO_ICOUNT else snapshot.icount


def _snapshot_line(snapshot: Snapshot) -> str:
    seconds, rest = divmod(snapshot.clock, _SECOND)
    return _row(
        snapshot.id,
        snapshot.name,
        size_text(snapshot.vm_state_size),
        f"{datetime.fromtimestamp(snapshot.seconds):%Y-%m-%d %H:%M:%S}",
        f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 1_000_000:03}",
        "" if _icount(snapshot) is None else str(_icount(snapshot)),
    )


def _snapshot_facts(snapshot: Snapshot) -> dict[str, object]:
    icount = _icount(snapshot)
    return {
        **({} if icount is None else {"icount": icount}),
        "vm-clock-nsec": snapshot.clock % _SECOND,
        "name": snapshot.name,
        "date-sec": snapshot.seconds,
        "date-nsec": snapshot.nanoseconds,
        "vm-clock-sec": snapshot.clock // _SECOND,
        "id": snapshot.id,
        "vm-state-size": snapshot.vm_state_size,
    }


class Info(Struct, frozen=True):
    """`size`: the guest's; `disk_size`: what it takes up where it lies, None when nobody tells. Bytes.

    `flagged`: whether QEMU's driver for the store says that a raw image is not dirty; those of nfs: and null: do not.
    """

    name: str
    size: int
    disk_size: int | None
    flagged: bool
    qcow2: Qcow2Info | None = None

    @property
    def format(self) -> str:
        return "raw" if self.qcow2 is None else "qcow2"

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"image: {self.name}"
        yield f"file format: {self.format}"
        yield f"virtual size: {size_text(self.size)} ({self.size} bytes)"
        yield f"disk size: {'unavailable' if self.disk_size is None else size_text(self.disk_size)}"
        if self.qcow2 is not None:
            yield from self.qcow2.lines()

    def facts(self) -> dict[str, object]:
        """For programs, in the order in which QEMU's tables have the names."""
        qcow2 = self.qcow2
        facts: dict[str, object] = {}
        if qcow2 is not None and qcow2.backing is not None and qcow2.header.backing_format is not None:
            facts["backing-filename-format"] = qcow2.header.backing_format
        if qcow2 is not None and qcow2.snapshots:
            facts["snapshots"] = [_snapshot_facts(snapshot) for snapshot in qcow2.snapshots]
        facts |= {"virtual-size": self.size, "filename": self.name}
        if qcow2 is not None:
            facts["cluster-size"] = qcow2.header.cluster_size
        facts["format"] = self.format
        if self.disk_size is not None:
            facts["actual-size"] = self.disk_size
        if qcow2 is not None:
            facts["format-specific"] = {"type": "qcow2", "data": qcow2.specific()}
            if qcow2.backing is not None:
                facts |= {"full-backing-filename": qcow2.full_backing, "backing-filename": qcow2.backing}
        if qcow2 is not None or self.flagged:
            facts["dirty-flag"] = qcow2 is not None and qcow2.dirty
        return facts


async def info(place: Place) -> Info:
    """About the image at one place. Nothing that it names is opened."""
    return (await _look(place))[0]


async def chain(place: Place, trusted: Trust) -> list[Info]:
    """About it and the images below it, as far down as `trusted` allows; ImageError for what that forbids."""
    found: list[Info] = []
    above: set[tuple[object, ...]] = set()
    following: Place | None = place
    while following is not None:
        one, identity, backing, resolved = await _look(following)
        if identity in above:
            raise Fatal(f"Backing file '{one.name}' creates an infinite loop.")
        if len(found) > trust.MOST_LAYERS:
            raise cannot_open(one.name, f"more than {trust.MOST_LAYERS} backing files", ImageError)
        above.add(identity)
        found.append(one)
        following = None
        if backing is not None:
            following = trust.backing_place(resolved, backing.backing_file or "", backing.backing_format, trusted)
    return found


async def _look(place: Place) -> tuple[Info, tuple[object, ...], Header | None, Place]:
    """And the store's identity, the header when it names a backing file, the place with its format."""
    image, [resolved] = await open_and_resolve([place], OpenOptions(looking=True, alone=True))
    try:
        store = image.stores[0]
        flagged = family_of(store.name) in {"file", "iscsi"}
        told = await _of_qcow2(image) if isinstance(image, Qcow2Image) else None
        below = told.header if told is not None and told.backing is not None else None
        found = Info(shown_name(store.name), image.size, await store.disk_size(), flagged, told)
        return found, store.identity, below, resolved
    finally:
        await image.close()


async def _of_qcow2(image: Qcow2Image) -> Qcow2Info:
    named = image.header.backing_file
    full = None if named is None else redacted(trust.combined(shown_name(image.store.name), named))
    return Qcow2Info(image.header, image.snapshots, await image.read_bitmaps(), full)


def shown_name(name: str) -> str:
    """A store's name, which is without credentials; a local file's without `file:`."""
    return name.removeprefix("file:")
