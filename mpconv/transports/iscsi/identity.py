"""By what a LUN is known: its designators (VPD page 83) and its unit serial number (page 80). Pure, but for the asking.

Whatever a target answers is read as far as it is a page, of a few kilobytes at most; nothing is raised for the rest.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

from mpconv.transports.identity import Designators
from mpconv.transports.iscsi import scsi

_SERIAL, _NAMES = 0x80, 0x83
FIRST_BYTES = 252
"""SCSI-2 targets look at one byte of the length alone."""
_MOST_BYTES = 4096
"""Longer pages name hundreds of ports."""
_T10, _NAME, _UUID = 1, 8, 10
_UUID_BYTES = 18
_WORLDWIDE_NAMES = ("eui.", "naa.", "iqn.", "uuid.")

Ask = Callable[[bytes, int], Awaitable[bytes]]
"""Zeros where the target does not tell."""


def parse(names: bytes, serial: bytes) -> Designators:
    """From pages 83 and 80."""
    worldwide, local = set[str](), set[str]()
    for code_set, kind, name in scsi.designators(names):
        if not name[1:].strip(b"\0 \xff"):  # 60 00 00 ... is what a target says that was never given a name
            continue
        text, unique = _named(code_set, kind, name)
        (worldwide if unique else local).add(text)
    return Designators(
        frozenset(worldwide), frozenset(local), scsi.parse_serial(serial), tuple(scsi.parse_names(names))
    )


def _named(code_set: int, kind: int, name: bytes) -> tuple[str, bool]:
    """A designator as text, and whether it is unique in the world."""
    if code_set == scsi.BINARY:
        if kind in (scsi.NAA, scsi.EUI64):
            return f"{'naa' if kind == scsi.NAA else 'eui'}.{name.hex()}", scsi.is_worldwide(kind, name)
        if kind == _UUID:
            return f"uuid.{name[2:].hex()}", len(name) == _UUID_BYTES
    text = name.decode(errors="replace").rstrip(" \0")
    if kind == _NAME:
        return text.lower(), text.lower().startswith(_WORLDWIDE_NAMES)
    if kind == _T10:
        return f"t10.{text}", False
    return f"{kind}.{name.hex()}", False


async def read(ask: Ask) -> Designators:
    """One round trip; another one for a page of more than 252 bytes."""
    names, serial = await asyncio.gather(
        ask(scsi.inquiry_vpd(_NAMES, FIRST_BYTES), FIRST_BYTES),
        ask(scsi.inquiry_vpd(_SERIAL, FIRST_BYTES), FIRST_BYTES),
    )
    length = 4 + struct.unpack_from(">H", names, 2)[0]
    if names[1] == _NAMES and length > FIRST_BYTES:
        length = min(length, _MOST_BYTES)
        names = await ask(scsi.inquiry_vpd(_NAMES, length), length)
    return parse(names, serial)
