"""Passwords in the names of images: where they stand, so that nobody is shown one. Pure.

What a name may look like is what libiscsi, libnfs and QEMU take, and what people write who get it wrong: a password
ends at the last '@' that may end one, whatever stands in it.
"""

from __future__ import annotations

import re

_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_ISCSI = frozenset(("iscsi", "iser"))
_HOST = r"(?:\[[^\[\]@/?]*\]|[^/?@:%]*)(?::\d+)?"
_LUN = re.compile(rf"(?:(?P<login>[^@?]*)@)?(?P<lun>{_HOST}/[^/?]+/\d+)(?:\?.*)?", re.DOTALL)
"""The target's name may hold an '@' of its own."""
_AUTHORITY = re.compile(rf"(?:(?P<login>[^@/?]*)@)?{_HOST}(?:[/?].*)?", re.DOTALL)
_PASSWORD_BEGINS = re.compile("[%:]")
_OPTION = re.compile(r"password=((?:[^,]|,,)+)", re.DOTALL)
"""In a list of driver options a comma of a value is doubled."""
_MEMBER = re.compile(r'password"\s*:\s*"((?:[^"\\]|\\.)*)')


def redacted(url: str) -> str:
    """The URL without a password, and without parameters where one may be among them."""
    match = _URL.fullmatch(url)
    if match is None:
        return url
    rest = match["rest"]
    if match["scheme"].lower() in _ISCSI:
        lun = _LUN.fullmatch(rest)
        shown = _cut(rest) if lun is None else _user(lun["login"]) + lun["lun"]
    else:
        plain = _AUTHORITY.fullmatch(rest)
        if plain is None:
            shown = _cut(rest)
        elif plain["login"] is None:
            shown = rest
        else:
            shown = _user(plain["login"]) + rest[len(plain["login"]) + 1 :].partition("?")[0]
    return f"{match['scheme']}://{shown}"


def has_user(url: str) -> bool:
    """Whether the URL of a LUN names a user, who needs a password."""
    match = _URL.fullmatch(url)
    lun = _LUN.fullmatch(match["rest"]) if match is not None and match["scheme"].lower() in _ISCSI else None
    return lun is not None and bool(lun["login"])


def _user(login: str | None) -> str:
    return "" if login is None else f"{_PASSWORD_BEGINS.split(login, maxsplit=1)[0]}@"


def _cut(rest: str) -> str:
    """Of a URL that is none: nothing between the user's name and the last '@'."""
    login, at, after = rest.rpartition("@")
    if at:
        return _user(login) + after.partition("?")[0]
    host, slash, path = rest.partition("?")[0].partition("/")
    return host.partition("%")[0] + slash + path


def secrets_in(argument: str) -> list[tuple[int, int]]:
    """From where to where passwords may stand in a word of a command line: a URL, or options that hold one."""
    found = [match.span(1) for pattern in (_OPTION, _MEMBER) for match in pattern.finditer(argument)]
    url, end = _URL.search(argument), argument.rfind("@")
    if url is not None and redacted(url[0]).partition("?")[0] != url[0].partition("?")[0]:
        begins = _PASSWORD_BEGINS.search(argument, url.start("rest"), end)
        if begins is not None:
            found.append((begins.end(), end))
    return found
