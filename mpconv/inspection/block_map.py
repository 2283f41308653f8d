"""Where an image's data lies, as `qemu-img map` tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from mpconv.formats.base import Image
from mpconv.formats.layers import Piece, pieces
from mpconv.inspection.info import shown_name
from mpconv.model.errors import Fatal, StatusWithdrawn


class Entry(Struct, frozen=True):
    """`length` bytes from `start`, alike. `depth`, `present`, `zero`, `data`: as a Piece's. `offset`: the byte of
    `file` where it begins; None: there is none that could be told.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None
    file: str

    def followed_by(self, other: Entry) -> bool:
        """Whether the two are one."""
        return (self.depth, self.present, self.zero, self.data, self.file) == (
            other.depth,
            other.present,
            other.zero,
            other.data,
            other.file,
        ) and (None if self.offset is None else self.offset + self.length) == other.offset


async def block_map(
    image: Image, start: int, length: int | None, warn: Callable[[str], None], shift: int = 0
) -> list[Entry]:
    """What lies from guest byte `start` on; one entry without bytes when there is nothing. `shift`: the byte of the
    store at which a raw image begins.

    A store that calls data zeros is not believed: then all that it holds is data.
    """
    end = image.size if length is None else min(image.size, start + length)
    try:
        return await _entries(image, start, end, shift, trusting=True)
    except StatusWithdrawn as error:
        warn(f"{error}: all of it is shown as data")
        return await _entries(image, start, end, shift, trusting=False)


async def _entries(image: Image, start: int, end: int, shift: int, *, trusting: bool) -> list[Entry]:
    found: list[Entry] = []
    async for piece in pieces(image, start, end, trusting=trusting):
        entry = _entry(piece, shift)
        if found and found[-1].followed_by(entry):
            last = found[-1]
            found[-1] = Entry(
                last.start,
                last.length + entry.length,
                last.depth,
                last.present,
                last.zero,
                last.data,
                last.offset,
                last.file,
            )
        else:
            found.append(entry)
    return found or [Entry(start, 0, 0, False, False, False, None, "")]


def _entry(piece: Piece, shift: int) -> Entry:
    offset = None if piece.host is None else piece.host + shift
    file = "" if piece.store is None or offset is None else shown_name(piece.store.name)
    return Entry(piece.start, piece.length, piece.depth, piece.present, piece.zero, piece.data, offset, file)


def map_lines(entries: list[Entry]) -> Iterator[str]:
    """Where data lies, for people. Fatal, after what comes before it, for data that lies nowhere as it is."""
    yield f"{'Offset':16}{'Length':16}{'Mapped to':16}File"
    for entry in entries:
        if entry.data and not entry.zero:
            if entry.offset is None:
                raise Fatal("File contains external, encrypted or compressed clusters.")
            yield "".join(f"{_hex(n):16}" for n in (entry.start, entry.length, entry.offset)) + entry.file


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"


def map_json(entries: list[Entry]) -> Iterator[str]:
    """All of it, for programs."""
    for number, entry in enumerate(entries, 1):
        present, zero, data = map(_word, (entry.present, entry.zero, entry.data))
        offset = "" if entry.offset is None else f', "offset": {entry.offset}'
        yield (
            f'{"[" if number == 1 else ""}{{ "start": {entry.start}, "length": {entry.length}, '
            f'"depth": {entry.depth}, "present": {present}, "zero": {zero}, "data": {data}{offset}}}'
            f"{']' if number == len(entries) else ','}"
        )


def _word(truth: bool) -> str:
    return "true" if truth else "false"
