"""Where an image lies, and what it may have opened besides itself: frozen, validated values. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image lies: a part of a byte store, all of it as a rule; offset and size in bytes.

    `direct`: past the page cache, where there is one. `shared`: whoever else has it open, QEMU's locks are not asked.
    `format`: raw or qcow2, None when nobody said: then its first bytes tell. `snapshot`: the internal one that is
    meant, by id or name. `backing`, `data_file`: the files that the image is made of besides, once that is found out.

    `beneath`: the directory in which alone it may be opened, whatever links there are. `marks`: by what the store is
    known that somebody opened here before; who opens it again must find the same, as far as it finds anything of it.
    """

    url: str
    offset: int = 0
    size: int | None = None
    direct: bool = False
    shared: bool = False
    format: str | None = None
    snapshot: str | None = None
    backing: Place | None = None
    data_file: Place | None = None
    beneath: str | None = None
    marks: dict[str, str] = {}

    def resolved(
        self, fmt: str, marks: dict[str, str], *, backing: Place | None = None, data_file: Place | None = None
    ) -> Place:
        """The same place with what was found out."""
        return msgspec.structs.replace(self, format=fmt, marks=marks, backing=backing, data_file=data_file)

    def marked(self, marks: dict[str, str]) -> Place:
        """The same place, of which it is known now what lies there."""
        return msgspec.structs.replace(self, marks=marks)


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What an image that is opened may open besides itself; nothing, unless the user allows it.

    `backing`: None: no backing file; else the directories it may lie in, "" for that of the image itself.
    `data_file`: the same of an external data file; True is short for [""]. It is written only in a directory that has a
    name.
    """

    backing: list[str] | None = None
    data_file: list[str] | bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data_file, bool):
            msgspec.structs.force_setattr(self, "data_file", [""] if self.data_file else None)


NO_TRUST = Trust()

Name = str | Place
"""A path, an nfs:// or iscsi:// URL, or `null:`."""
OnWarning = Callable[[str], None]


def place_of(name: Name, fmt: str | None) -> Place:
    """Where the image lies. `fmt`: None: its first bytes tell. A Place says that itself."""
    return name if isinstance(name, Place) else Place(url=name, format=fmt)
