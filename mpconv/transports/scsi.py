"""SCSI commands as bytes (SBC-3, SPC-4), and the answers read. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

GOOD, CHECK_CONDITION, BUSY, RESERVATION_CONFLICT, TASK_SET_FULL = 0x00, 0x02, 0x08, 0x18, 0x28
CANCELLED, FAILED, TIMED_OUT = 0x0F000000, 0x0F000001, 0x0F000002

UNIT_ATTENTION, DATA_PROTECT, ILLEGAL_REQUEST = 0x06, 0x07, 0x05

NO_COMMAND = 0x2000
"""Sense code 20/00: invalid command operation code."""
NO_SPACE = 0x2707
"""Sense code 27/07: space allocation failed (write protect)."""


def read16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0)


def write16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, 0, lba, blocks, 0, 0)


def inquiry(allocation: int) -> bytes:
    """The standard one: what kind of device it is."""
    return struct.pack(">BBBHB", 0x12, 0, 0, allocation, 0)


def mode_sense6(allocation: int) -> bytes:
    """All pages, without block descriptors."""
    return struct.pack(">BBBBBB", 0x1A, 0x08, 0x3F, 0, allocation, 0)


def synchronize_cache10() -> bytes:
    """All blocks."""
    return struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)


def synchronize_cache16() -> bytes:
    """All blocks."""
    return struct.pack(">BBQIBB", 0x91, 0, 0, 0, 0, 0)


def read_capacity16(allocation: int) -> bytes:
    return struct.pack(">BBQIBB", 0x9E, 0x10, 0, allocation, 0, 0)


def get_lba_status(lba: int, allocation: int) -> bytes:
    return struct.pack(">BBQIBB", 0x9E, 0x12, lba, allocation, 0, 0)


def inquiry_vpd(page: int, allocation: int) -> bytes:
    return struct.pack(">BBBHB", 0x12, 1, page, allocation, 0)


def unmap(parameter_length: int) -> bytes:
    return struct.pack(">BBIBHB", 0x42, 0, 0, 0, parameter_length, 0)


def unmap_parameters(lba: int, blocks: int) -> bytes:
    """One block descriptor."""
    return struct.pack(">HH4xQI4x", 22, 16, lba, blocks)


@dataclass(frozen=True, slots=True)
class Capacity:
    """READ CAPACITY(16): block size in bytes; `thin` is LBPME, `zeroes` is LBPRZ."""

    blocks: int
    block_size: int
    thin: bool
    zeroes: bool


def parse_capacity(data: bytes) -> Capacity:
    last, block_size, _, _, flags = struct.unpack_from(">QIBBH", data)
    return Capacity(last + 1, block_size, bool(flags & 0x8000), bool(flags & 0x4000))


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """VPD page B0, in blocks; 0: no limit reported."""

    largest_transfer: int
    largest_unmap: int


_DISK = 0
_DEVICES = {
    1: "a tape drive",
    2: "a printer",
    3: "a processor",
    4: "a write-once drive",
    5: "a CD or DVD drive",
    7: "an optical drive",
    8: "a medium changer",
    0x0C: "the target's controller",
    0x0D: "an enclosure",
    0x11: "an object store",
    0x14: "a zoned disk",
    0x1E: "a well known LUN",
}


def not_a_disk(data: bytes) -> str | None:
    """From standard INQUIRY data: what a LUN is that is no disk, in words; None for a disk."""
    qualifier, kind = data[0] >> 5, data[0] & 0x1F
    if qualifier:
        return "No such LUN"
    if kind == _DISK:
        return None
    return f"it is not a disk but {_DEVICES.get(kind, f'a device of type {kind:#04x}')}"


def parse_write_protected(data: bytes) -> bool:
    """The WP bit of MODE SENSE(6)."""
    return bool(data[2] & 0x80)


def parse_block_limits(data: bytes) -> BlockLimits:
    """No limits from what is not that page."""
    if data[1] != 0xB0:
        return BlockLimits(0, 0)
    return BlockLimits(struct.unpack_from(">I", data, 8)[0], struct.unpack_from(">I", data, 20)[0])


def parse_unmap_supported(data: bytes) -> bool:
    """LBPU of VPD page B2."""
    return data[1] == 0xB2 and bool(data[5] & 0x80)


def parse_lba_status(data: bytes) -> list[tuple[int, int, bool]]:
    """(first block, blocks, mapped) for each descriptor."""
    length = struct.unpack_from(">I", data)[0] + 4
    found = []
    for at in range(8, min(length, len(data)) - 15, 16):
        lba, blocks, state = struct.unpack_from(">QIB", data, at)
        found.append((lba, blocks, state & 0x0F == 0))
    return found


_WORDS = {
    0x2100: "the address is beyond the end of the LUN",
    0x2500: "No such LUN",
    0x2700: "the LUN is write protected",
    NO_SPACE: "No space left on the LUN's storage",
    NO_COMMAND: "the target does not know the command",
    0x2400: "the target refuses the command's parameters",
    0x1100: "unrecovered read error",
    0x0C00: "write error",
    0x4400: "internal target failure",
}
_KEYS = {
    3: "medium error",
    4: "hardware error",
    5: "illegal request",
    6: "unit attention",
    7: "write protected",
}


def words(status: int, key: int, ascq: int) -> str:
    """A status and its sense, for people."""
    if status == CHECK_CONDITION:
        text = _WORDS.get(ascq) or _WORDS.get(ascq & 0xFF00)
        return text or f"{_KEYS.get(key, f'sense key {key}')} (sense code {ascq >> 8:02x}/{ascq & 255:02x})"
    named = {
        BUSY: "the target is busy",
        TASK_SET_FULL: "the target's task set is full",
        RESERVATION_CONFLICT: "another initiator has reserved the LUN",
        CANCELLED: "the connection to the target was lost",
        FAILED: "the command failed",
        TIMED_OUT: "the target did not answer in time",
    }
    return named.get(status, f"SCSI status {status:#x}")
