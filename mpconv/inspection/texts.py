"""Values as QEMU writes them. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from mpconv.model.names import readable_values

_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|.)|\x7f")
_EMPTY_LIST = re.compile(r"^( *)(.*)\[\](,?)$", re.MULTILINE)


def size_text(size: int) -> str:
    """Three digits and a unit, "977 KiB"; from 1000 of one unit on it is the next."""
    unit = max(0, math.frexp(size * 1.024)[1] - 1) // 10
    return f"{size / (1 << 10 * unit):.3g} {_UNITS[unit]}B"


def json_text(value: object) -> str:
    """JSON as QEMU writes it: ASCII, four spaces, hexadecimal digits in capitals, an empty list on two lines.

    Bytes of a name that are no UTF-8 become U+FFFD.
    """

    def escape(match: re.Match[str]) -> str:
        if match[0] == "\x7f":
            return "\\u007F"
        return match[0] if match[1] is None else f"\\u{match[1].upper()}"

    return _EMPTY_LIST.sub(r"\1\2[\n\1]\3", _ESCAPE.sub(escape, json.dumps(readable_values(value), indent=4)))


def tree_lines(value: dict[str, object] | list[object], depth: int) -> Iterator[str]:
    """What `json_text` would show, for people; `depth` times four spaces before it."""
    named = value.items() if isinstance(value, dict) else ((f"[{at}]", inner) for at, inner in enumerate(value))
    for name, inner in named:
        head = f"{'':{depth * 4}}{name.replace('-', ' ')}:"
        if isinstance(inner, (dict, list)):
            yield head
            yield from tree_lines(inner, depth + 1)
        else:
            yield f"{head} {str(inner).lower() if isinstance(inner, bool) else inner}"
