"""Which format qemu-img would take an image for, by its first bytes. Pure.

The facts are those of the probe functions of QEMU 7.2's block drivers. It reads 512 bytes, zeros behind a shorter
file.
"""

from __future__ import annotations

import re
import struct

PROBED = 512
"""Bytes that are looked at."""

_QCOW = b"QFI\xfb"
_VDI_AT, _VDI = 0x40, 0xBEDA107F
_PARALLELS = (b"WithoutFreeSpace", b"WithouFreSpacExt")
_PARALLELS_VERSION = 2
_BOCHS = (b"Bochs Virtual HD Image", b"Redolog", b"Growing")
_BOCHS_VERSIONS = (0x10000, 0x20000)
_CLOOP = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
_STARTS = {
    "qed": (b"QED\0",),
    "vmdk": (b"KDMV", b"COWD"),
    "vpc": (b"conectix",),
    "vhdx": (b"vhdxfile",),
    "luks": (b"LUKS\xba\xbe\0\x01",),
}
_VMDK_DESCRIPTOR = re.compile(rb"(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n")


def probe(header: bytes, name: str, size: int) -> str:
    """The format's name in qemu-img; "raw" when nothing is known of it. `header`: the first 512 bytes or more of an
    image of `size` bytes, fewer of a smaller one.
    """
    if size == 0:
        return "raw"
    start = header[:PROBED].ljust(PROBED, b"\0")
    if start.startswith(_QCOW):
        (version,) = struct.unpack_from(">I", start, 4)
        if version:
            return "qcow" if version == 1 else "qcow2"
    for kind, magics in _STARTS.items():
        if start.startswith(magics):
            return kind
    if _VMDK_DESCRIPTOR.match(start):
        return "vmdk"
    if struct.unpack_from("<I", start, _VDI_AT) == (_VDI,):
        return "vdi"
    if start.startswith(_PARALLELS) and struct.unpack_from("<I", start, 16) == (_PARALLELS_VERSION,):
        return "parallels"
    if _is_bochs(start):
        return "bochs"
    # These two are sure of nothing: any other format goes first.
    if name.endswith(".dmg") and name != ".dmg":
        return "dmg"
    return "cloop" if start.startswith(_CLOOP) else "raw"


def _is_bochs(start: bytes) -> bool:
    """Three texts in fields of 32, 16 and 16 bytes that end at a NUL, and a version."""
    fields = struct.unpack_from("<32s16s16sI", start)
    return tuple(field.partition(b"\0")[0] for field in fields[:3]) == _BOCHS and fields[3] in _BOCHS_VERSIONS
