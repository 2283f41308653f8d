"""Passwords that came in on the command line are taken out of what `ps` shows."""

from __future__ import annotations

import ctypes
from pathlib import Path

_ARG_START, _ARG_END = 45, 46
"""Fields 48 and 49 of proc(5)'s stat, counted from the one after the command's name."""


def hide_passwords() -> None:
    """Overwrite what may be a password in what /proc/PID/cmdline shows. `sys.argv` keeps what was given.

    For a moment at the start it can still be seen; who minds sets LIBISCSI_CHAP_PASSWORD.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        shown = Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if len(shown) != end - start:
        return
    if b"@" not in shown and b"password" not in shown:
        return
    from mpconv.transports.redaction import secrets_in  # noqa: PLC0415  (few need it)

    at = start
    for word in shown.split(b"\0"):
        for first, last in secrets_in(word.decode("latin-1")):
            ctypes.memset(at + first, ord("x"), last - first)
        at += len(word) + 1
