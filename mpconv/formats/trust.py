"""What an image may have opened besides itself: nothing, unless the user allows it.

An image's backing file and data file are words in somebody else's file. Opened without asking they hand out any file of
this host (CVE-2024-32498, CVE-2024-4467), and written into they destroy it. So both are refused until the command line
allows them, only in directories that it names; `json:` names are refused always.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote_to_bytes

from msgspec.structs import replace

from mpconv.model.errors import ImageError
from mpconv.model.place import Place, Trust
from mpconv.transports import is_local, module_of, redacted
from mpconv.transports.base import cannot_open
from mpconv.transports.file.beneath import realpath, rest
from mpconv.transports.file.identity import is_marked
from mpconv.transports.file.store import path_of

MOST_LAYERS = 200
_OPTIONS = {"backing file": "--allow-backing", "data file": "--allow-data-file"}
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


def backing_place(place: Place, name: str, fmt: str | None, trust: Trust) -> Place:
    """Where the backing file of the image at `place` lies, which asks for it by `name`. ImageError: not allowed."""
    return _allowed(place, "backing file", name, trust.backing, fmt)


def data_place(place: Place, name: str | None, trust: Trust, *, written: bool = False) -> Place:
    """Where the external data file of the image at `place` lies. `written`: it is to be written into, which takes a
    directory that has a name. ImageError: not allowed.
    """
    if name is None:
        raise cannot_open(place.url, "the image has an external data file and does not name it", ImageError)
    directories = trust.data_file if isinstance(trust.data_file, list) else None
    if written and directories is not None:
        named = [directory for directory in directories if directory]
        if not named:
            why = f"the image asks for the data file '{redacted(name)}', which is written only with "
            raise cannot_open(place.url, f"{why}--allow-data-file=DIRECTORY, the directory it may lie in", ImageError)
        directories = named
    return _allowed(place, "data file", name, directories, "raw")


def with_data_file(trust: Trust, url: str, name: str) -> Trust:
    """The same, and the data file `name` of the image at `url`, which this program made."""
    known = trust.data_file if isinstance(trust.data_file, list) else []
    made = combined(url, name)
    if is_local(made):  # a link that the user named may lead anywhere
        made = realpath(path_of(made))
    return replace(trust, data_file=[*known, _directory(made)])


def _allowed(place: Place, what: str, name: str, directories: list[str] | None, fmt: str | None) -> Place:
    """What the image at `place` asks for by `name`, to be opened beneath the first directory that it lies in now."""
    asks = f"the image asks for the {what} '{redacted(name)}'"
    option = _OPTIONS[what]
    if name.startswith("json:"):
        raise cannot_open(place.url, f"{asks}: json: names inside images are never opened", ImageError)
    if directories is None:
        why = f"{asks}, which is opened only with {option} (in the image's own directory) or {option}=DIRECTORY"
        raise cannot_open(place.url, why, ImageError)
    url = combined(place.url, name)
    for allowed in directories:
        inside = _resolved(allowed) if allowed else _own_directory(place)
        if _is_in(url, inside):
            return Place(url=url, direct=place.direct, shared=place.shared, format=fmt, beneath=inside)
    why = f"{asks}, which lies in none of the directories that {option} allows: to allow its own, give "
    raise cannot_open(place.url, f"{why}{option}=DIRECTORY", ImageError)


def combined(url: str, name: str) -> str:
    """`name` as seen from the image at `url`, as QEMU's path_combine has it; parameters of the URL are kept."""
    if name.startswith("/") or _SCHEME.match(name):
        return name
    if is_local(url):
        return posixpath.join(posixpath.dirname(url), name)
    path, mark, query = url.partition("?")
    return f"{path.rpartition('/')[0]}/{name.replace('?', '%3F')}{mark}{query}"


def _directory(url: str) -> str:
    if is_local(url):
        return posixpath.dirname(url.removeprefix("file:")) or "."
    return url.partition("?")[0].rpartition("/")[0]


def _resolved(directory: str) -> str:
    """A local one without links, so that who moves them later changes nothing."""
    return realpath(path_of(directory)) if is_local(directory) else directory


def _own_directory(place: Place) -> str:
    """That of the image, which is open. ImageError when by its name there is another one by now."""
    found = _resolved(_directory(place.url))
    if is_local(place.url) and not is_marked(f"{found}/{posixpath.basename(place.url)}", place.marks):
        raise cannot_open(
            place.url, "its directory is another one by now: see who moved it, and begin anew", ImageError
        )
    return found


def _is_in(url: str, directory: str) -> bool:
    """Whether it lies there or below: `directory` as _resolved has it. Local links are followed first; a URL with `..`
    lies nowhere.
    """
    if is_local(url) != is_local(directory):
        return False
    if is_local(url):
        return rest(directory, path_of(url)) is not None
    path, inside = _plain(url), _plain(directory).rstrip("/") + "/"
    if module_of(url) != module_of(directory) or ".." in path.split("/"):
        return False
    return path.startswith(inside)


def _plain(url: str) -> str:
    """As the server hears of it: %2e%2e is a `..` too."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(url.partition("?")[0])))
