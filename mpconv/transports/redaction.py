"""Passwords in the names of images: where they stand, so that nobody is shown one. Pure.

What a name may look like is what libiscsi, libnfs and QEMU take, and what people write who get it wrong: a password
ends at the last '@' that may end one, whatever stands in it.
"""

from __future__ import annotations

import re

_URL = r"(?s)(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)"
"""Here and below: compiled when it is first needed. For names of files none is."""
_ISCSI = frozenset(("iscsi", "iser"))
_HOST = r"(?:\[[^\[\]@/?]*\]|[^/?@:%]*)(?::\d+)?"
_LUN = rf"(?s)(?:(?P<login>[^@?]*)@)?(?P<lun>{_HOST}/[^/?]+/\d+)(?:\?.*)?"
"""The target's name may hold an '@' of its own."""
_AUTHORITY = rf"(?s)(?:(?P<login>[^@/?]*)@)?{_HOST}(?:[/?].*)?"
_PASSWORD_BEGINS = "[%:]"
_OPTION = r"password=((?:[^,]|,,)+)"
"""In a list of driver options a comma of a value is doubled."""
_MEMBER = r'password"\s*:\s*"((?:[^"\\]|\\.)*)'


def redacted(url: str) -> str:
    """The URL without a password, and without parameters where one may be among them."""
    match = re.fullmatch(_URL, url) if "://" in url else None
    if match is None:
        return url
    rest = match["rest"]
    if match["scheme"].lower() in _ISCSI:
        lun = re.fullmatch(_LUN, rest)
        shown = _cut(rest) if lun is None else _user(lun["login"]) + lun["lun"]
    else:
        plain = re.fullmatch(_AUTHORITY, rest)
        if plain is None:
            shown = _cut(rest)
        elif plain["login"] is None:
            shown = rest
        else:
            shown = _user(plain["login"]) + rest[len(plain["login"]) + 1 :].partition("?")[0]
    return f"{match['scheme']}://{shown}"


def has_user(url: str) -> bool:
    """Whether the URL of a LUN names a user, who needs a password."""
    match = re.fullmatch(_URL, url)
    lun = re.fullmatch(_LUN, match["rest"]) if match is not None and match["scheme"].lower() in _ISCSI else None
    return lun is not None and bool(lun["login"])


def _user(login: str | None) -> str:
    return "" if login is None else f"{re.split(_PASSWORD_BEGINS, login, maxsplit=1)[0]}@"


def _cut(rest: str) -> str:
    """Of a URL that is none: nothing between the user's name and the last '@'."""
    login, at, after = rest.rpartition("@")
    if at:
        return _user(login) + after.partition("?")[0]
    host, slash, path = rest.partition("?")[0].partition("/")
    return host.partition("%")[0] + slash + path


def secrets_in(argument: str) -> list[tuple[int, int]]:
    """From where to where passwords may stand in a word of a command line: a URL, or options that hold one."""
    found = [match.span(1) for pattern in (_OPTION, _MEMBER) for match in re.finditer(pattern, argument)]
    url, end = re.search(_URL, argument), argument.rfind("@")
    if url is not None and redacted(url[0]).partition("?")[0] != url[0].partition("?")[0]:
        begins = re.compile(_PASSWORD_BEGINS).search(argument, url.start("rest"), end)
        if begins is not None:
            found.append((begins.end(), end))
    return found
