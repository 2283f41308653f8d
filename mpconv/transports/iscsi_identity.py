"""By what a LUN is known: its designators (VPD page 83) and its unit serial number (page 80). Pure, but for the asking.

Whatever a target answers is read as far as it is a page, of a few kilobytes at most; nothing is raised for the rest.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

from msgspec import Struct

from mpconv.transports import scsi

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


class Designators(Struct, frozen=True):
    """What names a logical unit, whichever port or target it is reached by.

    `worldwide`: names that no other LUN may have (NAA but for the locally assigned, EUI-64, UUID, SCSI name string).
    `local`: those that another server's LUN may have too (tgt makes them of target and LUN numbers): locally assigned
    NAA and that of no company, T10 vendor identification, MD5, vendor specific. `serial`: unique among those of one
    vendor and product, if the vendor keeps to it. `told`: all of them as they came, each as its kind and hexadecimal
    digits.
    """

    worldwide: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()
    serial: str = ""
    told: tuple[str, ...] = ()

    @property
    def marks(self) -> dict[str, str]:
        """By what whoever opens it again knows it: as Transport's. Ports may differ in names that are not worldwide, so
        these count only where there are no others.
        """
        if self.worldwide:
            return {"its worldwide names": ", ".join(sorted(self.worldwide))}
        found = {"its designators": ", ".join(sorted(self.told)), "its serial number": self.serial}
        return {what: name for what, name in found.items() if name}

    def same(self, other: Designators) -> bool | None:
        """Whether both name one LUN. None: they agree, but strangers may; or nothing is told."""
        if self.worldwide and other.worldwide:
            return not self.worldwide.isdisjoint(other.worldwide)
        if set(self.told) != set(other.told) or self.serial != other.serial:
            return False
        return None


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
