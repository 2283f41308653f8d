"""Percent-encoding in URLs: %XX stands for a byte. Pure."""

from __future__ import annotations

import re
from os import fsdecode, fsencode
from urllib.parse import unquote_to_bytes

from mpconv.transports.base import cannot_open

_NO_BYTE = re.compile(r"%(?![0-9a-f]{2})", re.IGNORECASE)


def decoded(url: str, text: str) -> str:
    """The bytes that `text`, a part of `url`, stands for, as a name has them; Fatal where it cannot be."""
    if "%" not in text:
        return text
    if _NO_BYTE.search(text):
        raise cannot_open(url, "a '%' without two hexadecimal digits: a '%' in a name is written %25")
    found = fsdecode(unquote_to_bytes(fsencode(text)))
    if "\0" in found:
        raise cannot_open(url, "there is a NUL byte in it (%00), which no name has")
    return found
