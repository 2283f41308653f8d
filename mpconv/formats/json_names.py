"""The stores that a `json:` name, QEMU's driver options as a JSON object, leads to. Pure.

Nothing is opened by what is found here but to see what it is. So what this program does not know is passed over, and
options that change nothing about which stores are meant are not looked at.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import msgspec

PREFIX = "json:"
_LOCAL = frozenset(("file", "host_device", "host_cdrom"))
_URL_LIKE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


def urls_in(name: str) -> list[tuple[str, str | None]]:
    """Each with the format that the node above it reads it as, if one does."""
    try:
        told = msgspec.json.decode(name.removeprefix(PREFIX).encode(errors="surrogateescape"))
        return _of(_nested(told), None)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return []


def _nested(told: object) -> dict[str, Any]:
    """`a.b` is a key `b` of what stands under `a`."""
    found: dict[str, Any] = {}
    for key, value in told.items() if isinstance(told, dict) else ():
        *path, last = key.split(".")
        at = found
        for part in path:
            inner = at.setdefault(part, {})
            at = inner if isinstance(inner, dict) else {}
        if isinstance(value, dict) and isinstance(at.get(last), dict):
            at[last] |= _nested(value)
        else:
            at[last] = _nested(value) if isinstance(value, dict) else value
    return found


def _of(node: dict[str, Any], above: str | None) -> list[tuple[str, str | None]]:
    driver = node.get("driver")
    url = _url(node, driver)
    found = [] if url is None else [(url, above)]
    fmt = driver if driver in ("raw", "qcow2") else None
    for key, inner in node.items():
        if isinstance(inner, dict):
            found += _of(inner, "raw" if key == "data-file" else fmt)
    return found


def _url(node: dict[str, Any], driver: object) -> str | None:
    def text(key: str, of: dict[str, Any] = node) -> str:
        value = of.get(key)
        return str(value) if isinstance(value, str | int) else ""

    server = node.get("server")
    if filename := text("filename"):
        return f"file:{filename}" if driver in _LOCAL and _URL_LIKE.match(filename) else filename
    if driver == "nfs" and isinstance(server, dict):
        host = text("host", server)
        return f"nfs://{f'[{host}]' if ':' in host else host}{quote(text('path'))}"
    if driver == "iscsi":
        return f"iscsi://{text('portal')}/{quote(text('target'), safe=':')}/{text('lun') or '0'}"
    return None
