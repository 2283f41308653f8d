"""NFS URLs, taken apart. Pure.

They are read as QEMU reads them: of the path, once it is taken out of the URL, every %XX stands for a byte, also for a
slash; what is no byte so is refused. libnfs gets what is decoded: version 4 of it decodes nothing, and version 5 all of
a URL before it looks for the `?`. As there, a name need not be UTF-8: bytes that are none are in it as surrogates.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from os import fsencode
from urllib.parse import quote

from msgspec import Struct

from mpconv.transports.base import cannot_open
from mpconv.transports.percent import decoded

_URL = re.compile(
    r"nfs://(?P<host>(?:[^/@?]*@)?(?:\[[^\]/]*\]|[^/:?]*))(?::(?P<port>\d*))?(?P<path>/[^?]*)(?:\?(?P<query>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_LARGEST_ID = (1 << 32) - 2


class Address(Struct, frozen=True):
    """`host`: its name or address alone; `path`: of the file, with its export, decoded; `parameters`: the same."""

    host: str
    path: str
    parameters: dict[str, str]

    @property
    def url(self) -> str:
        """Another way to write it, in ASCII."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nfs://{quote(host, safe='[]:')}{quote(fsencode(self.path))}" + (f"?{self.query}" * bool(self.query))

    @property
    def query(self) -> str:
        """The parameters, of which none has anything in it that is to be encoded. A port is one of them."""
        return "&".join(f"{name}={value}" for name, value in self.parameters.items())

    @property
    def directory(self) -> str:
        """What is mounted."""
        return self.path.rpartition("/")[0] or "/"

    @property
    def file(self) -> str:
        """Its name in there."""
        return self.path.rpartition("/")[2]


def parse(url: str) -> Address:
    """Fatal when it is none."""
    match = _URL.fullmatch(url)
    if match is None or not match["host"]:
        raise cannot_open(url, "not of the form nfs://host[:port]/export/file[?parameter=value&...]")
    user, _, host = match["host"].rpartition("@")
    if ":" in user:
        raise cannot_open(url, "NFS knows no passwords: write nfs://[user@]host[:port]/export/file")
    given = [part.partition("=")[::2] for part in (match["query"] or "").split("&") if part]
    if match["port"] and "nfsport" not in dict(given):
        given.append(("nfsport", match["port"]))
    parameters = {}
    for name, value in given:
        if name not in _PARAMETERS:
            raise cannot_open(url, f"unknown URL parameter '{name}' (a '?' in a file's name is written %3F)")
        parameters[name] = decoded(url, value)
        fits, what = _PARAMETERS[name]
        if not fits(parameters[name]):
            raise cannot_open(url, f"the URL parameter '{name}' is '{parameters[name]}': it must be {what}")
    host = decoded(url, host.removeprefix("[").removesuffix("]"))
    if "/" in host:
        raise cannot_open(url, "a '/' in the name of a host")
    return Address(host, decoded(url, match["path"]), parameters)


def _number(least: int, most: int) -> tuple[Callable[[str], bool], str]:
    def fits(text: str) -> bool:
        return text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most

    return fits, f"a number from {least} to {most}"


def _word(pattern: str, what: str) -> tuple[Callable[[str], bool], str]:
    return lambda text: re.fullmatch(pattern, text) is not None, what


_PARAMETERS = {
    "version": _word("[34]", "3 or 4"),
    "uid": _number(0, _LARGEST_ID),
    "gid": _number(0, _LARGEST_ID),
    "nfsport": _number(1, 65535),
    "mountport": _number(1, 65535),
    "tcp-syncnt": _number(0, 255),
    "debug": _number(0, 9),
    "auto-traverse-mounts": _number(0, 1),
    "dircache": _number(0, 1),
    "sec": _word("sys|krb5[ip]?", "sys, krb5, krb5i or krb5p"),
    "if": _word(r"[\w.-]{1,15}", "the name of a network interface"),
}
