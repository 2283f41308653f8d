"""The table of internal snapshots: bytes -> checked values. Pure."""

from __future__ import annotations

import re
import struct

from msgspec import Struct

from mpconv.model.errors import ImageError
from mpconv.model.units import MiB, align_up

_FIXED = struct.Struct(">QIHHIIQII")
_FIELD = re.compile(r"((?:[^,]|,,)+)(?:,|$)")
"""In a list of options a comma of a value is doubled."""
_MAX_EXTRA = 1024
LARGEST_TABLE = 64 * MiB
LARGEST_NAMES = 24 * MiB
"""Of all snapshots together, in characters: QEMU itself writes at most 127 for an id and 255 for a name."""


class Snapshot(Struct, frozen=True):
    """`l1_size` counts entries. `seconds`, `nanoseconds`: when it was made; `clock`: the guest's, in nanoseconds."""

    l1_offset: int
    l1_size: int
    id: str
    name: str
    seconds: int
    nanoseconds: int
    clock: int
    vm_state_size: int
    disk_size: int | None
    icount: int | None = None
    stored: int = 0


def parse(data: bytes, count: int) -> tuple[list[Snapshot], int]:
    """At most `count` snapshots, those that lie in `data` as a whole, and how many bytes they take up."""
    found = []
    at = 0
    for _ in range(count):
        start = at
        if at + _FIXED.size > len(data):
            break
        l1_offset, l1_size, id_length, name_length, seconds, nanoseconds, clock, state, extra = _FIXED.unpack_from(
            data, at
        )
        if extra > _MAX_EXTRA:
            raise ImageError("Too much extra metadata in snapshot table entry")
        end = at + _FIXED.size + extra + id_length + name_length
        if end > len(data):
            break
        at += _FIXED.size
        disk_size = icount = None
        if extra >= 8:
            state = struct.unpack_from(">Q", data, at)[0]
        if extra >= 16:
            disk_size = struct.unpack_from(">Q", data, at + 8)[0]
        if extra >= 24:
            icount = struct.unpack_from(">Q", data, at + 16)[0]
        names = data[at + extra : end]
        found.append(
            Snapshot(
                l1_offset,
                l1_size,
                names[:id_length].decode(errors="surrogateescape"),
                names[id_length:].decode(errors="surrogateescape"),
                seconds,
                nanoseconds,
                clock,
                state,
                disk_size,
                icount,
                stored=align_up(end, 8) - start,
            )
        )
        at = align_up(end, 8)
    return found, at


def find(snapshots: list[Snapshot], wanted: str) -> Snapshot:
    """By id, then by name; or, of `snapshot.id=X,snapshot.name=Y`, by both. ImageError in QEMU's words."""
    if wanted.startswith("snapshot."):
        fields = dict(part.replace(",,", ",").partition("=")[::2] for part in _FIELD.findall(wanted))
        by_id, by_name = fields.get("snapshot.id"), fields.get("snapshot.name")
        matches = [
            snapshot
            for snapshot in snapshots
            if (by_id is None or snapshot.id == by_id) and (by_name is None or snapshot.name == by_name)
        ]
    else:
        matches = [snapshot for snapshot in snapshots if snapshot.id == wanted]
        matches += [snapshot for snapshot in snapshots if snapshot.name == wanted]
    if not matches:
        raise ImageError("Failed to load snapshot: Can't find snapshot")
    return matches[0]
