"""Rows of a journal as what they say. Pure. They may say anything: what comes out can be counted with."""

from __future__ import annotations

import json
import zlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mpconv.journal.records import Begun, Happening, Identity, State, Stored
from mpconv.model.digest import WIDTH
from mpconv.model.ranges import Ranges

_LAST = (1 << 63) - 1
_Count = Annotated[int, Meta(ge=0, le=_LAST)]
_Time = Annotated[float, Meta(ge=0, le=1 << 38)]
_Job = tuple[_Time, _Time, int, State, _Count, _Count, _Count, str, str, _Count, str]
_Happened = list[tuple[_Time, str, str, _Count | None, _Count | None]]
_MOST_KINDS = 1 << 20
"""Bytes of the map, which has a byte for each of some thousands of parts."""
_MOST_ENTRIES = 1 << 23
"""Bytes of a part of the target's tables: at most one table of 2^18 entries of 16 bytes, or 8192 entries."""


def stored(
    jobs: list[Any], done: list[Any], identities: list[Any], happened: list[Any], kinds: Any, progress: list[Any]
) -> Stored:
    """All of them. ValueError when they are none that a copy leaves. `kinds`: the row, or None."""
    if len(jobs) != 1:
        raise ValueError(f"it tells of {len(jobs)} copies")
    job = msgspec.convert(jobs[0], _Job)
    created, updated, pid, state, zeros, written, places, source, target, size, course = job
    ranges = Ranges()
    for start, end in msgspec.convert(done, list[tuple[_Count, _Count]]):
        if not start < end <= size:
            raise ValueError(f"bytes {start} to {end} of {size} are done")
        ranges.add(start, end)
    known = [
        Identity(role, name, *(msgspec.convert(json.loads(text), dict[str, str]) for text in (same, content)))
        for role, name, same, content in msgspec.convert(identities, list[tuple[str, str, str, str]])
    ]
    return Stored(
        begun=Begun(source=source, target=target, size=size, course=course, identities=known),
        state=state,
        pid=pid,
        created=created,
        updated=updated,
        done=ranges,
        zeros=zeros,
        written=written,
        places=places,
        happened=[Happening(*one) for one in msgspec.convert(happened, _Happened)],
        kinds=_unpacked(kinds[0]) if kinds is not None else b"",
        progress=msgspec.convert(progress, list[tuple[_Time, _Count, _Count]]),
    )


def entries(found: list[Any]) -> dict[int, bytes]:
    """Of the target's tables, by number."""
    parts = msgspec.convert(found, list[tuple[_Count, bytes]])
    return {number: _inflated(packed, _MOST_ENTRIES, "places") for number, packed in parts}


def digests(found: list[Any]) -> dict[int, bytes]:
    """The sums, by region."""
    sums = dict(msgspec.convert(found, list[tuple[_Count, bytes]]))
    if any(len(one) != WIDTH for one in sums.values()):
        raise ValueError("its sums are none")
    return sums


def _unpacked(kinds: Any) -> bytes:
    found = _inflated(kinds, _MOST_KINDS, "map")
    if not found.isascii():
        raise ValueError("its map is none")
    return found


def _inflated(packed: bytes, most: int, what: str) -> bytes:
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(packed, most)
    if not unpacking.eof:
        raise ValueError(f"the {what} in it cannot be unpacked")
    return found
