"""Makes a failing case smaller: fewer options, fewer and smaller images of simpler content, still the same failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.differential.cases import LUNS, Case, Image, Piece
from tests.differential.run import Difference

Signature = tuple[str, ...]


def signature(found: list[Difference]) -> Signature:
    """What kind of failure it is: words without their numbers; of bytes only that they differ."""
    spoken = ("stderr", "traceback", "exit code")
    kinds = []
    for one in found:
        words = f" {one.qemu} / {one.mpconv}" if one.what in spoken else ""
        kinds.append(one.what + re.sub(r"\d+", "N", words))
    return tuple(kinds)


def merged(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one kind are one piece; none is empty."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].kind == piece.kind:
            found[-1] = Piece(piece.kind, found[-1].length + piece.length)
        elif piece.length:
            found.append(piece)
    return tuple(found)


def _smaller_pieces(pieces: tuple[Piece, ...], *, same_size: bool) -> Iterator[tuple[Piece, ...]]:
    size = sum(piece.length for piece in pieces)
    for kind in ("hole", "data"):
        if len(pieces) > 1:
            yield (Piece(kind, size),)
    if not same_size:
        for length in (0, 512, 4096, 65_536):
            if pieces and length < size and len(pieces) == 1:
                yield merged([Piece(pieces[0].kind, length)])
        half = len(pieces) // 2
        if half > 1:
            yield pieces[:half]
            yield pieces[half:]
        for number in range(len(pieces)):
            yield merged([*pieces[:number], *pieces[number + 1 :]])
    for number, piece in enumerate(pieces):
        before, after = list(pieces[:number]), list(pieces[number + 1 :])
        if len(pieces) > 1:
            for neighbour in {one.kind for one in (*before[-1:], *after[:1])} - {piece.kind}:
                yield merged([*before, Piece(neighbour, piece.length), *after])
        if piece.kind == "zeros":
            yield merged([*before, Piece("hole", piece.length), *after])
        if same_size:
            continue
        for length in (piece.length // 2, piece.length // 4096 * 4096, piece.length // 512 * 512, 4096, 512):
            if 0 < length < piece.length:
                yield merged([*before, Piece(piece.kind, length), *after])


def _smaller_images(image: Image) -> Iterator[Image]:
    if image.spelled != "{}":
        yield replace(image, spelled="{}")
    if image.exists and image.pieces:
        for pieces in _smaller_pieces(image.pieces, same_size=image.place in LUNS):
            yield replace(image, pieces=pieces)


_SIMPLE = {"-m": "1", "-S": "0", "-t": "none", "-T": "none"}


def smaller(case: Case) -> Iterator[Case]:
    """Cases with one thing less, the largest steps first. A file that is there twice is changed twice."""
    if case.workers is not None:
        yield replace(case, workers=None)
    if case.spelling != "short":
        yield replace(case, spelling="short")
    if len(case.options) > 2:
        yield replace(case, options=case.options[: len(case.options) // 2])
        yield replace(case, options=case.options[len(case.options) // 2 :])
    for number in range(len(case.options)):
        yield replace(case, options=case.options[:number] + case.options[number + 1 :])
    for number in range(len(case.sources)):
        if len(case.sources) > 1:
            yield replace(case, sources=case.sources[:number] + case.sources[number + 1 :])
    for number, option in enumerate(case.options):
        simple = _SIMPLE.get(option[0])
        if len(option) == 2 and simple is not None and option[1] != simple:
            yield replace(case, options=(*case.options[:number], (option[0], simple), *case.options[number + 1 :]))
    for image in dict.fromkeys(case.images):
        for less in _smaller_images(image):
            sources = tuple(less if one == image else one for one in case.sources)
            target = less if case.target == image else case.target
            yield replace(case, sources=sources, target=target)


def shrink(
    case: Case, found: list[Difference], compare: Callable[[Case], list[Difference]], budget: int
) -> tuple[Case, list[Difference]]:
    """The smallest that still fails in the same way, and how, after at most `budget` runs."""
    wanted = signature(found)
    tried = {case}
    again = True
    while again:
        again = False
        for less in smaller(case):
            if less in tried:
                continue
            if not budget:
                return case, found
            budget -= 1
            tried.add(less)
            now = compare(less)
            if signature(now) == wanted:
                case, found, again = less, now, True
                break
    return case, found
