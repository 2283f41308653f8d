"""Byte stores behind one contract (base.py), chosen by the scheme of a URL.

A store reads, writes, makes zeros and flushes. It knows nothing of formats, leases and workers.
"""

from __future__ import annotations

import importlib
import os
import re
from functools import partial

from msgspec.structs import replace

from mpconv.model.errors import Gone, MpconvError, UsageError
from mpconv.model.names import unusable
from mpconv.model.place import Place
from mpconv.transports.base import AS_USUAL, LEAST_PATIENCE, Access, Opening, Transport, cannot_open, unlike
from mpconv.transports.redaction import redacted as redacted
from mpconv.transports.retry import Retry, Tell, silently
from mpconv.transports.slice import Slice

_FILE = "mpconv.transports.file.store"
_SCHEMES = {
    "nfs": "mpconv.transports.nfs.store",
    "iscsi": "mpconv.transports.iscsi.store",
    "null": "mpconv.transports.null",
    "memory": "mpconv.transports.memory",
    "file": _FILE,
}
"""The module that serves each scheme; it is imported when a URL needs it."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")


def module_of(url: str) -> str:
    """The module that serves `url`. UsageError for a scheme nobody serves, and for what is no name."""
    why = unusable(url)
    if why is not None:
        raise cannot_open(url, why, UsageError)
    match = _SCHEME.match(url)
    if match is None or "/" in url[: match.end()]:
        return _FILE
    scheme = match.group(1).lower()
    if scheme in _SCHEMES:
        return _SCHEMES[scheme]
    raise UsageError(f"Could not open '{redacted(url)}': Unknown protocol '{match.group(1)}'")


def family_of(url: str) -> str:
    """The folder or module here that serves `url`: file, nfs, iscsi, null, memory. Errors as `module_of`'s."""
    return module_of(url).split(".")[2]


def is_local(url: str) -> bool:
    """Whether it names a file or a device of this host."""
    return module_of(url) == _FILE


def same_name(one: str, other: str) -> bool:
    """Whether two names are one, as far as names tell: links of this host are followed."""
    if is_local(one) and is_local(other):
        one, other = (os.path.realpath(url.removeprefix("file://").removeprefix("file:")) for url in (one, other))
    return one == other


async def connect(
    url: str, access: Access, *, create_size: int | None = None, opening: Opening = AS_USUAL
) -> Transport:
    """Open the byte store behind `url`; with `create_size` (bytes) make or replace it first."""
    module = importlib.import_module(module_of(url))
    transport: Transport = await module.connect(url, access, create_size=create_size, opening=opening)
    return transport


def patience_of(retry: Retry) -> float:
    """For how many seconds what a server puts off is asked again, where its absence may last as long as that."""
    return max(LEAST_PATIENCE, retry.seconds)


async def _proved(place: Place, access: Access, opening: Opening) -> Transport:
    """What is there, which must be what was there when somebody looked before. Gone when it is not."""
    store = await connect(place.url, access, opening=opening)
    why = unlike(place.marks, store.marks)
    if why is not None:
        await store.close()
        raise cannot_open(
            place.url, f"another one has come in its place ({why}): see who did that, and begin anew", Gone
        )
    return store


def settled(place: Place) -> Place:
    """The same by a name that means the same in every process, and with what it means. Fatal when there is none."""
    if not is_local(place.url):
        return place
    from mpconv.transports.file.identity import marks_at  # noqa: PLC0415
    from mpconv.transports.file.process_names import settled as settled_path  # noqa: PLC0415
    from mpconv.transports.file.store import path_of  # noqa: PLC0415  (as connect's)

    path = path_of(place.url)
    try:
        name = settled_path(path)
    except OSError as error:
        raise cannot_open(place.url, error.strerror or str(error)) from error
    return place if name == path else replace(place, url=f"file:{name}", marks=marks_at(path))


async def open_place(
    place: Place,
    access: Access,
    *,
    locked: bool = False,
    growing: bool = False,
    retry: Retry | None = None,
    tell: Tell = silently,
) -> Transport:
    """The store at a place that exists. `growing`: as Opening's. `retry`: a server's absence is to be survived: what is
    read is read again on a new connection, and `tell` hears of it; who writes must see to the rest himself.
    """
    patience = patience_of(retry) if retry is not None else LEAST_PATIENCE
    opening = Opening(
        direct=place.direct,
        locked=locked and not place.shared,
        growing=growing,
        patience=patience,
        beneath=place.beneath,
    )
    reopen = partial(_proved, place, access, opening)
    store = await reopen()
    if retry is not None and access is Access.READ and not is_local(place.url):
        from mpconv.transports.reconnecting import ReconnectingReader  # noqa: PLC0415  (copies between files do without)

        store = ReconnectingReader(store, reopen, retry, tell, steady=not place.shared)
    if place.offset == 0 and place.size is None:
        return store
    try:
        return Slice(store, place.offset, place.size)
    except MpconvError:
        await store.close()
        raise


def remade(store: Transport, place: Place, *, growing: bool, retry: Retry, tell: Tell) -> Transport:
    """A store that is written, whose connection can be made again for who `insist`s."""
    if is_local(place.url):
        return store
    from mpconv.transports.reconnecting import Reconnecting  # noqa: PLC0415

    return Reconnecting(store, partial(open_place, place, Access.WRITE, growing=growing, retry=retry), retry, tell)
