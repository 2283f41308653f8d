"""Makes a failing case smaller: fewer options, fewer and smaller images of simpler content, still the same failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.differential.cases import LUNS, Case, Image, Piece
from tests.differential.run import Difference

Signature = tuple[str, ...]


def signature(found: list[Difference]) -> Signature:
    """What kind of failure it is. What it says or exits with, without numbers and names, else what it left."""
    spoken = [one for one in found if one.what in ("exit code", "stderr", "traceback")]
    if not spoken:
        return tuple(one.what for one in found)
    return tuple(re.sub(r"'[^']*'|\d+", "N", f"{one.what} {one.qemu} / {one.mpconv}") for one in spoken)


def merged(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one kind are one piece; none is empty."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].kind == piece.kind:
            found[-1] = Piece(piece.kind, found[-1].length + piece.length)
        elif piece.length:
            found.append(piece)
    return tuple(found)


def _whole(image: Image) -> Iterator[tuple[Piece, ...]]:
    """One kind of content, and a size that is rounder."""
    sizes = [image.size] if image.place in LUNS else [0, 512, 4096, 65_536, image.size // 4096 * 4096, image.size]
    for size in sizes:
        for kind in ("hole", "data", "zeros"):
            if size <= image.size:
                yield (Piece(kind, size),) if size else ()


def _fewer_pieces(image: Image) -> Iterator[tuple[Piece, ...]]:
    pieces = image.pieces
    half = len(pieces) // 2
    if half and image.place not in LUNS:
        yield pieces[:half]
        yield pieces[half:]
        for number in range(len(pieces)):
            yield merged([*pieces[:number], *pieces[number + 1 :]])
    for number, piece in enumerate(pieces):
        neighbours = {one.kind: one for one in (*pieces[max(0, number - 1) : number], *pieces[number + 1 : number + 2])}
        for kind in neighbours.keys() | {"hole"}:
            yield merged([*pieces[:number], Piece(kind, piece.length), *pieces[number + 1 :]])


def _shorter_pieces(image: Image) -> Iterator[tuple[Piece, ...]]:
    if image.place in LUNS:
        return
    for number, piece in enumerate(image.pieces):
        for length in (512, 4096, piece.length // 2, piece.length // 4096 * 4096, piece.length // 512 * 512):
            if 0 < length < piece.length:
                yield merged([*image.pieces[:number], Piece(piece.kind, length), *image.pieces[number + 1 :]])


def _with_image(case: Case, image: Image, less: Image) -> Case:
    """A file that is there twice is changed twice."""
    sources = tuple(less if one == image else one for one in case.sources)
    return replace(case, sources=sources, target=less if case.target == image else case.target)


def _content(change: Callable[[Image], Iterator[tuple[Piece, ...]]]) -> Callable[[Case], Iterator[Case]]:
    def smaller(case: Case) -> Iterator[Case]:
        for image in dict.fromkeys(case.images):
            if image.exists and image.pieces:
                for pieces in change(image):
                    yield _with_image(case, image, replace(image, pieces=pieces))

    return smaller


_SIMPLE = {"-m": "1", "-S": "0", "-t": "none", "-T": "none"}


def _fewer_options(case: Case) -> Iterator[Case]:
    options = case.options
    if case.workers is not None:
        yield replace(case, workers=None)
    if case.spelling != "short":
        yield replace(case, spelling="short")
    if len(options) > 2:
        yield replace(case, options=options[: len(options) // 2])
        yield replace(case, options=options[len(options) // 2 :])
    for number in range(len(options)):
        yield replace(case, options=options[:number] + options[number + 1 :])


def _plainer_words(case: Case) -> Iterator[Case]:
    for number, option in enumerate(case.options):
        simple = _SIMPLE.get(option[0])
        if len(option) == 2 and simple is not None and option[1] != simple:
            yield replace(case, options=(*case.options[:number], (option[0], simple), *case.options[number + 1 :]))
    for image in dict.fromkeys(case.images):
        if image.spelled != "{}":
            yield _with_image(case, image, replace(image, spelled="{}"))


def _fewer_sources(case: Case) -> Iterator[Case]:
    for number in range(len(case.sources)):
        if len(case.sources) > 1:
            yield replace(case, sources=case.sources[:number] + case.sources[number + 1 :])


_STAGES: tuple[Callable[[Case], Iterator[Case]], ...] = (
    _fewer_options,
    _fewer_sources,
    _plainer_words,
    _content(_whole),
    _content(_fewer_pieces),
    _content(_shorter_pieces),
)


def shrink(
    case: Case, found: list[Difference], compare: Callable[[Case], list[Difference]], budget: int
) -> tuple[Case, list[Difference]]:
    """The smallest that still fails in the same way, and how, after at most `budget` runs."""
    wanted = signature(found)
    tried = {case}

    def less_by(stage: Callable[[Case], Iterator[Case]]) -> bool:
        """Whether that made it smaller."""
        nonlocal case, found, budget
        for less in stage(case):
            if less in tried or not budget:
                continue
            budget -= 1
            tried.add(less)
            now = compare(less)
            if signature(now) == wanted:
                case, found = less, now
                return True
        return False

    again = True
    while again and budget:
        again = False
        for stage in _STAGES:
            while less_by(stage):
                again = True
    return case, found
