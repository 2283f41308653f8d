"""What an image may have opened besides itself: nothing, unless the user allows it.

An image's backing file and data file are words in somebody else's file. Opened without asking they hand out any file of
this host (CVE-2024-32498, CVE-2024-4467). So both are refused until the command line allows them, a backing file only
in directories that it names; `json:` names are refused always.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote_to_bytes

from mpconv.errors import ImageError
from mpconv.job import Place, Trust
from mpconv.transports import is_local, module_of, redacted
from mpconv.transports.base import cannot_open

MOST_LAYERS = 200
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


def backing_place(place: Place, name: str, fmt: str | None, trust: Trust) -> Place:
    """Where the backing file of the image at `place` lies, which asks for it by `name`. ImageError: not allowed."""
    _never_json(place, "backing file", name)
    if trust.backing is None:
        raise cannot_open(
            place.url,
            f"the image asks for the backing file '{redacted(name)}', which is opened only with --allow-backing "
            "(in the image's own directory) or --allow-backing=DIRECTORY",
            ImageError,
        )
    url = combined(place.url, name)
    for allowed in trust.backing:
        if _is_in(url, allowed or _directory(place.url)):
            return Place(url=url, direct=place.direct, shared=place.shared, format=fmt)
    raise cannot_open(
        place.url,
        f"the image asks for the backing file '{redacted(name)}', which lies in none of the directories that "
        "--allow-backing allows: to allow its own, give --allow-backing=DIRECTORY",
        ImageError,
    )


def data_place(place: Place, name: str | None, trust: Trust) -> Place:
    """Where the external data file of the image at `place` lies. ImageError: not allowed."""
    if name is None:
        raise cannot_open(place.url, "the image has an external data file and does not name it", ImageError)
    _never_json(place, "data file", name)
    if not trust.data_file:
        why = f"the image asks for the data file '{redacted(name)}', which is opened only with --allow-data-file"
        raise cannot_open(place.url, why, ImageError)
    return Place(url=combined(place.url, name), direct=place.direct, shared=place.shared, format="raw")


def _never_json(place: Place, what: str, name: str) -> None:
    if name.startswith("json:"):
        why = f"the image asks for the {what} '{redacted(name)}': json: names inside images are never opened"
        raise cannot_open(place.url, why, ImageError)


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


def _is_in(url: str, directory: str) -> bool:
    """Whether it lies there or below. Local links are followed first; a URL with `..` lies nowhere."""
    if is_local(url) != is_local(directory):
        return False
    if is_local(url):
        path = os.path.realpath(url.removeprefix("file:"))
        inside = os.path.realpath(directory.removeprefix("file:"))
        return path.startswith(inside.rstrip("/") + "/")
    path, inside = _plain(url), _plain(directory).rstrip("/") + "/"
    if module_of(url) != module_of(directory) or ".." in path.split("/"):
        return False
    return path.startswith(inside)


def _plain(url: str) -> str:
    """As the server hears of it: %2e%2e is a `..` too."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(url.partition("?")[0])))
