"""Names of images are bytes, most of them UTF-8. The others hold lone surrogates, as os.fsdecode makes them. Pure."""

from __future__ import annotations

import re

_PLANES = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_NONCHARACTER = re.compile(f"[\ufdd0-\ufdef{_PLANES}]")


def readable(text: str) -> str:
    """As QEMU shows such a name in JSON: bytes that are no UTF-8 become U+FFFD, and what Unicode keeps for nothing."""
    if text.isascii():
        return text
    return _NONCHARACTER.sub("\ufffd", text.encode(errors="surrogateescape").decode(errors="replace"))


def readable_values(value: object) -> object:
    """The same of every text in dicts and lists."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {key: readable_values(inner) for key, inner in value.items()}
    return [readable_values(inner) for inner in value] if isinstance(value, list) else value
