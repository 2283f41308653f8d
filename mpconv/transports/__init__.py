"""Byte stores behind one contract (base.py), chosen by the scheme of a URL."""

from __future__ import annotations

import importlib
import re

from mpconv.errors import MpconvError, UsageError
from mpconv.job import Place
from mpconv.transports.base import AS_USUAL, Access, Opening, Transport
from mpconv.transports.window import Window

_SCHEMES = {"nfs": "nfs", "iscsi": "iscsi", "null": "null", "memory": "memory", "file": "file"}
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")


def module_of(url: str) -> str:
    """The module that serves `url`. UsageError for a scheme nobody serves."""
    match = _SCHEME.match(url)
    if match is None or "/" in url[: match.end()]:
        return "mpconv.transports.file"
    scheme = match.group(1).lower()
    if scheme in _SCHEMES:
        return f"mpconv.transports.{_SCHEMES[scheme]}"
    raise UsageError(f"Could not open '{redacted(url)}': Unknown protocol '{match.group(1)}'")


def is_local(url: str) -> bool:
    """Whether it names a file or a device of this host."""
    return module_of(url) == f"{__name__}.file"


def redacted(url: str) -> str:
    """The URL without a password, and without parameters where one may be among them."""
    match = re.fullmatch(r"([^/?]*://)([^?]*)@([^@?]*)(\?.*)?", url, re.DOTALL)
    return f"{match[1]}{match[2].partition('%')[0].partition(':')[0]}@{match[3]}" if match else url


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> Transport:
    """Open the byte store behind `url`; with `create_size` (bytes) make or replace it first."""
    module = importlib.import_module(module_of(url))
    transport: Transport = await module.connect(url, access, create_size=create_size, opening=opening)
    return transport


async def open_place(place: Place, access: Access, *, locked: bool = False, growing: bool = False) -> Transport:
    """The store at a place that exists. `growing`: as Opening's."""
    opening = Opening(direct=place.direct, locked=locked and not place.shared, growing=growing)
    store = await connect(place.url, access, opening=opening)
    if place.offset == 0 and place.size is None:
        return store
    try:
        return Window(store, place.offset, place.size)
    except MpconvError:
        await store.close()
        raise
