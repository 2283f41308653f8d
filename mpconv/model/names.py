"""Names of images are bytes, most of them UTF-8. The others hold lone surrogates, as os.fsdecode makes them. Pure."""

from __future__ import annotations

import re

_PLANES = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_NONCHARACTER = f"[\ufdd0-\ufdef{_PLANES}]"
"""Compiled when it is first needed, which is seldom."""


_HALF = "[\ud800-\udc7f\udd00-\udfff]"
"""Surrogates that stand for no byte."""


def unusable(name: str) -> str | None:
    """Why nothing can have that name; None: it is one."""
    if "\0" in name:
        return "a name cannot have a NUL character in it"
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        return f"a name cannot have U+{ord(name[error.start]):04X} in it, which is half a character"
    return None


def readable(text: str) -> str:
    """As QEMU shows such a name in JSON: bytes that are no UTF-8 become U+FFFD, and what Unicode keeps for nothing."""
    if text.isascii():
        return text
    told = re.sub(_HALF, "\ufffd", text).encode(errors="surrogateescape").decode(errors="replace")
    return re.sub(_NONCHARACTER, "\ufffd", told)


def readable_values(value: object) -> object:
    """The same of every text in dicts and lists."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {key: readable_values(inner) for key, inner in value.items()}
    return [readable_values(inner) for inner in value] if isinstance(value, list) else value
