"""Which display a command has."""

from __future__ import annotations

import os
from typing import TextIO

from mpconv.model.errors import UsageError
from mpconv.ui.terminal.progress import Display, JsonLines, ProgressLine, Silent


def make_display(kind: str, stream: TextIO, error_stream: TextIO) -> Display:
    """The display for `--progress`: "none", "text" (a live bar where `stream` is a terminal that can show one) or
    "json". UsageError for another.
    """
    if kind == "none":
        return Silent(stream, error_stream)
    if kind == "json":
        return JsonLines(stream, error_stream)
    if kind != "text":
        raise UsageError(f"Invalid progress kind '{kind}': text or json")
    if not stream.isatty() or os.environ.get("TERM", "dumb") in {"", "dumb", "unknown"}:
        return ProgressLine(stream, error_stream)
    from mpconv.ui.terminal.bar import LiveBar  # noqa: PLC0415  (rich takes a tenth of a second to import)

    return LiveBar(stream, error_stream)
