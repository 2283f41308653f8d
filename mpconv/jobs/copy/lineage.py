"""The files that a new image would be made of besides itself: none of them may be the image, or it would read itself.

They are opened to see what they are, and no byte of theirs comes out but the names of the next ones. So no leave is
asked for; only, what names inside images make us talk to is a file of this host or a server that the user has named.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from msgspec.structs import replace

from mpconv import transports
from mpconv.formats import json_names
from mpconv.formats.opening import found_format
from mpconv.formats.qcow2.image import read_metadata
from mpconv.formats.trust import MOST_LAYERS, combined
from mpconv.model.errors import MpconvError, NoSuchImage, UsageError
from mpconv.model.place import Place
from mpconv.transports.base import Access, Transport
from mpconv.transports.identity import ALLOW, Verdict
from mpconv.transports.sameness import verdict_of


async def layers_of(backing: Place, target: Place, opened: AsyncExitStack) -> list[Transport]:
    """The backing file that a target is to have, and all that this one is made of, as far as it is there."""
    found: list[Transport] = []
    keys: set[object] = set()
    named = [backing, target]
    left = [backing]
    while left and len(found) < MOST_LAYERS:
        place = left.pop()
        try:
            store = await transports.open_place(place, Access.READ)
        except MpconvError:  # who needs it will say so
            continue
        opened.push_async_callback(store.close)
        if store.identity in keys:
            continue
        keys.add(store.identity)
        found.append(store)
        left += [below for below in await _below(store, place) if _is_near(below, named)]
    return found


async def _below(store: Transport, place: Place) -> list[Place]:
    try:
        if (place.format or await found_format(store)) != "qcow2":
            return []
        header = (await read_metadata(store)).header
    except MpconvError:
        return []
    names = [(header.backing_file, header.backing_format), (header.data_file if header.external_data else None, "raw")]
    return [below for name, fmt in names if name is not None for below in _named(place.url, name, fmt)]


def _named(url: str, name: str, fmt: str | None) -> list[Place]:
    """What the image at `url` means by a name: one place, but for names in JSON. What a guest of this image would have
    opened is of interest, so these are understood here although copies never open them.
    """
    if not name.startswith(json_names.PREFIX):
        return [Place(url=combined(url, name), format=fmt)]
    return [Place(url=found, format=told) for found, told in json_names.urls_in(name)]


def _is_near(place: Place, named: Sequence[Place]) -> bool:
    try:
        if transports.is_local(place.url):
            return True
        return any(_server(place.url) == _server(one.url) for one in named)
    except MpconvError:
        return False


def _server(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    return scheme.lower(), rest.partition("/")[0].rpartition("@")[2].lower()


async def check(target: Transport, layers: Sequence[Transport], *, allowed: bool, begun: bool) -> None:
    """UsageError when the target is one of the files below it, of which the first one is its backing file."""
    for number, layer in enumerate(layers):
        verdict = await verdict_of(layer, target, begun=begun or allowed)
        if verdict is Verdict.DIFFERENT or (allowed and verdict is Verdict.PROBABLE):
            continue
        how, fix = "", ""
        if verdict is Verdict.PROBABLE:
            how, fix = "probably ", f": name another target, or give {ALLOW} if you know that they are two"
        if number:
            why = f"the target '{target.name}' is {how}what its backing file '{layers[0].name}' is made of"
            raise UsageError(f"{why}: '{layer.name}'{fix}")
        names = f"the target '{target.name}' and its backing file '{layer.name}'"
        raise UsageError(f"{names} are {how}the same image{fix}")


async def check_data_file(target: Place, data: Place, *, allowed: bool, begun: bool) -> Transport | None:
    """The data file that the target is to have, if it is there: for a look, and to be closed. UsageError when it is the
    target itself.
    """
    why = f"the target '{transports.redacted(target.url)}' and its data file '{transports.redacted(data.url)}' are "
    if transports.same_name(target.url, data.url):
        raise UsageError(f"{why}the same image")
    try:
        there = await transports.open_place(replace(data, format="raw"), Access.READ)
    except NoSuchImage:
        return None
    try:
        image = await transports.open_place(target, Access.READ)
        try:
            verdict = await verdict_of(there, image, begun=begun or allowed)
        finally:
            await image.close()
    except NoSuchImage:
        return there
    except BaseException:
        await there.close()
        raise
    if verdict is Verdict.DIFFERENT or (allowed and verdict is Verdict.PROBABLE):
        return there
    await there.close()
    raise UsageError(f"{why}{'probably ' if verdict is Verdict.PROBABLE else ''}the same image")
