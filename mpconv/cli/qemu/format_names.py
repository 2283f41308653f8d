"""Names of image formats, as qemu-img knows them. Pure."""

from __future__ import annotations

RAW, QCOW2 = "raw", "qcow2"
READABLE = frozenset((RAW, QCOW2))
OTHERS = frozenset(("bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"))
"""What qemu-img knows besides: another word is a slip of the pen."""


def unknown_target_format(fmt: str) -> str:
    """Why no image of that format, which is neither raw nor qcow2, can be made."""
    return f"mpconv cannot write {fmt} images yet" if fmt in OTHERS else f"Unknown file format '{fmt}'"
