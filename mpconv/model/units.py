"""Sizes and alignment, all in bytes; and times. Pure."""

from __future__ import annotations

import re

SECTOR = 512
KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

_SIZE = re.compile(r"([0-9]+)(?:\.([0-9]+))?([bkmgtpe]?)", re.IGNORECASE)
_TIME = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s?)?")
_HEX = re.compile(r"0[xX][0-9a-fA-F]+")
_SHIFT = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


class TooLarge(ValueError):
    """A size that no image can have."""


def parse_size(text: str) -> int:
    """Bytes for "4k", "1.5M", "512", "0x200": qemu-img's suffixes, powers of 1024. ValueError for anything else,
    TooLarge from 8 EiB on.
    """
    text = text.strip()
    if _HEX.fullmatch(text):
        return _below_8_eib(int(text, 16), text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a size")
    whole, fraction, suffix = match.groups()
    shift = _SHIFT[suffix.lower()]
    if fraction and not shift:
        raise ValueError(f"'{text}' is not a whole number of bytes")
    size = int(whole) << shift
    if fraction:
        parts = 10 ** len(fraction)
        size += ((int(fraction) << shift) + parts // 2) // parts
    return _below_8_eib(size, text)


def _below_8_eib(size: int, text: str) -> int:
    if size >= 1 << 63:
        raise TooLarge(f"'{text}' is more than 8 EiB")
    return size


def parse_seconds(text: str) -> float:
    """Seconds for "90", "2.5", "1m30s", "5m", "1h": a thousand days at most. ValueError for anything else."""
    match = _TIME.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"'{text}' is not a time")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total > 1000 * 86400:
        raise ValueError(f"'{text}' is too long")
    return total


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of `alignment` that is not above `value`."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


MAP_BINS = 2000
"""More parts of a disk than a page shows in pixels that can be told apart."""
_BIN_STEP = 4096


def bin_size(size: int) -> int:
    """Of a map of a disk of `size` bytes: a multiple of 4 KiB, so that at most 2,000 bins make the disk."""
    return max(_BIN_STEP, align_up(-(-size // MAP_BINS), _BIN_STEP))


def human(size: float) -> str:
    """ "1.25 GiB": for people, never for programs."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def duration(seconds: float) -> str:
    """ "1:02:03", "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
