"""SCSI commands as bytes (SBC-3, SPC-4), and the answers read. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from msgspec import Struct

GOOD, CHECK_CONDITION, BUSY, RESERVATION_CONFLICT, TASK_SET_FULL, TASK_ABORTED = 0x00, 0x02, 0x08, 0x18, 0x28, 0x40
CANCELLED, FAILED, TIMED_OUT = 0x0F000000, 0x0F000001, 0x0F000002

RECOVERED, NOT_READY, ILLEGAL_REQUEST, UNIT_ATTENTION, DATA_PROTECT, ABORTED = 0x01, 0x02, 0x05, 0x06, 0x07, 0x0B
DEFERRED = (0x71, 0x73)
"""Response codes of sense data that tells of an earlier command; this one was not carried out."""

NO_COMMAND = 0x2000
"""Sense code 20/00: invalid command operation code."""
NO_SPACE = 0x2707
"""Sense code 27/07: space allocation failed (write protect)."""
NO_LUN = 0x2500
"""Sense code 25/00: logical unit not supported."""
NO_SUCH_LUN = "No such LUN"
BEYOND_THE_END = 0x2100
"""Sense code 21/00: logical block address out of range."""
INVALID_CDB, INVALID_LIST = 0x2400, 0x2600
"""Sense codes 24/00 and 26/00: a field of the command, or of what comes with it, is not one that the target takes."""
_BECOMING_READY = (0x0401, 0x040A)
"""Sense codes 04/01, becoming ready, and 04/0A, changing the state of access: both by themselves."""


def is_put_off(status: int, key: int, ascq: int) -> bool:
    """Whether the target asks for the same command a moment later: for how long nobody knows."""
    not_yet = status == CHECK_CONDITION and key == NOT_READY and ascq in _BECOMING_READY
    return status in (BUSY, TASK_SET_FULL) or not_yet


def is_full(status: int, key: int, ascq: int) -> bool:
    """Whether there is no room behind the LUN for what was to be written."""
    return status == CHECK_CONDITION and key == DATA_PROTECT and ascq == NO_SPACE


def is_interrupted(status: int, key: int) -> bool:
    """Whether something else came first: the same command does what it should at the next try, or one soon after."""
    return status == TASK_ABORTED or is_news(status, key) or (status == CHECK_CONDITION and key == ABORTED)


def is_news(status: int, key: int) -> bool:
    """Whether the target only tells something first: the same command is to be sent again."""
    return status == CHECK_CONDITION and key == UNIT_ATTENTION


def test_unit_ready() -> bytes:
    return bytes(6)


def read16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0)


def write16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, 0, lba, blocks, 0, 0)


def write_same16(lba: int, blocks: int, *, unmap: bool) -> bytes:
    """The block that comes with it, over and over; `unmap`: the room may be given back instead."""
    return struct.pack(">BBQIBB", 0x93, 0x08 if unmap else 0, lba, blocks, 0, 0)


def write_same10(lba: int, blocks: int, *, unmap: bool) -> bytes:
    """The same for the first 2^32 blocks, 1 to 65535 of them: 0 would be all that follow."""
    return struct.pack(">BBIBHB", 0x41, 0x08 if unmap else 0, lba, 0, blocks, 0)


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


def report_luns(allocation: int) -> bytes:
    """Of the target, by any of its LUNs."""
    return struct.pack(">BBB3xIBB", 0xA0, 0, 0, allocation, 0, 0)


def unmap(parameter_length: int) -> bytes:
    return struct.pack(">BBIBHB", 0x42, 0, 0, 0, parameter_length, 0)


def unmap_parameters(lba: int, blocks: int) -> bytes:
    """One block descriptor."""
    return struct.pack(">HH4xQI4x", 22, 16, lba, blocks)


def extended_copy(parameter_length: int) -> bytes:
    """With the short list identifier (LID1)."""
    return struct.pack(">BB8xIBB", 0x83, 0, parameter_length, 0, 0)


_IDENTIFICATION, _BLOCK_TO_BLOCK = 0xE4, 0x02
_MAY_DISCARD = 2 << 3
_CSCD_LENGTH, _SEGMENT_LENGTH = 32, 28


def copy_parameters(
    list_id: int, source: bytes, target: bytes, block: int, *, source_lba: int, lba: int, blocks: int
) -> bytes:
    """One block to block segment (SPC-4 6.4). `source` and `target`: designators as `parse_designator` gives them;
    `block`: bytes of the blocks of both. Nobody will ask for the results.
    """
    header = struct.pack(">BBH4xI4x", list_id, _MAY_DISCARD, 2 * _CSCD_LENGTH, _SEGMENT_LENGTH)
    cscds = b"".join(struct.pack(">BBH24sI", _IDENTIFICATION, 0, 0, name, block) for name in (source, target))
    segment = struct.pack(">BBHHHHHQQ", _BLOCK_TO_BLOCK, 0, _SEGMENT_LENGTH - 4, 0, 1, 0, blocks, source_lba, lba)
    return header + cscds + segment


def parse_third_party_copy(data: bytes) -> bool:
    """The 3PC bit of standard INQUIRY data."""
    return bool(data[5] & 0x08)


BINARY = 1
EUI64, NAA = 2, 3
_NAA_LENGTHS = {2: 8, 5: 8, 6: 16}
"""By the first digit. 3 is assigned locally."""
_EUI_LENGTHS = (8, 12, 16)


def is_worldwide(kind: int, name: bytes) -> bool:
    """Whether no other LUN may have this binary name: one that a company made which has a number of its own.

    tgt makes names of target and LUN numbers, so another server's LUN has the same: NAA 3, and NAA 6 of company 0.
    """
    if kind == NAA:
        return _NAA_LENGTHS.get(name[0] >> 4 if name else 0) == len(name) and _company(name) != 0
    return kind == EUI64 and len(name) in _EUI_LENGTHS and any(name[-8:-5])


def _company(name: bytes) -> int:
    """Of an NAA name: 24 bits, after 4 bits of kind, and with kind 2 another 12."""
    first = int.from_bytes(name[:8])
    return first >> (24 if name[0] >> 4 == 2 else 36) & 0xFFFFFF


def parse_designator(data: bytes) -> bytes | None:
    """From VPD page 83 the LUN's name in the whole world, with the four bytes before it; None when it has none.

    NAA goes before EUI-64.
    """
    found: dict[int, bytes] = {}
    for code_set, kind, name in designators(data):
        if code_set == BINARY and is_worldwide(kind, name):
            found.setdefault(kind, bytes([code_set, kind, 0, len(name)]) + name)
    return found.get(NAA) or found.get(EUI64)


_SINGLE_LEVEL = (0x00, 0x40)
"""Peripheral and flat space addressing, in the first byte's upper bits."""


def parse_luns(data: bytes) -> list[int]:
    """Numbers of REPORT LUNS's answer, but for LUN 0 and those on several levels."""
    found = []
    for at in range(8, min(struct.unpack_from(">I", data)[0] + 8, len(data)) - 7, 8):
        word = struct.unpack_from(">H", data, at)[0]
        if word >> 8 & 0xC0 in _SINGLE_LEVEL and any(data[at : at + 2]):
            found.append(word & 0x3FFF)
    return sorted(found)


def parse_serial(data: bytes) -> str:
    """The unit serial number, VPD page 80; nothing from what is not that page."""
    if data[1] != 0x80:
        return ""
    return data[4 : 4 + data[3]].decode("ascii", errors="replace").strip(" \0")


def parse_names(data: bytes) -> list[str]:
    """All designators of VPD page 83 that name the LUN, those that only its own target knows too, as hexadecimal digits
    after their kind.
    """
    return [f"{kind}:{name.hex()}" for _, kind, name in designators(data)]


def designators(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Code set, kind and bytes of each designator of the LUN that is there as a whole; those of its ports are not."""
    end = min(4 + struct.unpack_from(">H", data, 2)[0], len(data)) if len(data) >= 4 and data[1] == 0x83 else 0
    at = 4
    while at + 4 <= end:
        code_set, association, kind, length = data[at] & 15, data[at + 1] >> 4 & 3, data[at + 1] & 15, data[at + 3]
        if association == 0 and length and at + 4 + length <= end:
            yield code_set, kind, data[at + 4 : at + 4 + length]
        at += 4 + length


class Capacity(Struct, frozen=True):
    """READ CAPACITY(16): block size in bytes; `thin` is LBPME, `zeroes` is LBPRZ."""

    blocks: int
    block_size: int
    thin: bool
    zeroes: bool


def parse_capacity(data: bytes) -> Capacity:
    last, block_size, _, _, flags = struct.unpack_from(">QIBBH", data)
    return Capacity(last + 1, block_size, bool(flags & 0x8000), bool(flags & 0x4000))


_NO_LIMIT = 0xFFFFFFFF


class BlockLimits(Struct, frozen=True):
    """VPD page B0, in blocks. 0 for transfers and WRITE SAME: no limit reported. 0 for UNMAP: the command is not there.

    `unmap_granule`: blocks that are unmapped together, counted from block `unmap_aligned`.
    """

    largest_transfer: int = 0
    optimal_transfer: int = 0
    largest_unmap: int = _NO_LIMIT
    unmap_descriptors: int = _NO_LIMIT
    unmap_granule: int = 1
    unmap_aligned: int = 0
    largest_write_same: int = 0


class Provisioning(Struct, frozen=True):
    """VPD page B2. `unmap`: LBPU, UNMAP is there; `write_same`, `write_same10`: LBPWS and LBPWS10, these can unmap.
    `zeroes`: LBPRZ, None where the page is not there; READ CAPACITY(16) tells the same, or one of the two is wrong.
    """

    unmap: bool = False
    write_same: bool = False
    write_same10: bool = False
    zeroes: bool | None = None


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
        return NO_SUCH_LUN
    if kind == _DISK:
        return None
    return f"it is not a disk but {_DEVICES.get(kind, f'a device of type {kind:#04x}')}"


def parse_product(data: bytes) -> str:
    """From standard INQUIRY data: vendor, product and revision."""
    words = (data[8:16], data[16:32], data[32:36])
    return " ".join(filter(None, (word.decode("ascii", errors="replace").strip(" \0") for word in words)))


def parse_write_protected(data: bytes) -> bool:
    """The WP bit of MODE SENSE(6)."""
    return bool(data[2] & 0x80)


_PAGE_OF_SBC_2 = 0x0C
"""The length of a page B0 that ends before the limits of UNMAP."""


def parse_block_limits(data: bytes) -> BlockLimits:
    """No limits from what is not that page."""
    if data[1] != 0xB0:
        return BlockLimits()
    transfer, optimal = struct.unpack_from(">II", data, 8)
    if struct.unpack_from(">H", data, 2)[0] <= _PAGE_OF_SBC_2:
        return BlockLimits(transfer, optimal)
    unmap, descriptors, granule, aligned, same = struct.unpack_from(">IIIIQ", data, 20)
    valid = aligned >> 31
    return BlockLimits(transfer, optimal, unmap, descriptors, granule or 1, (aligned & 0x7FFFFFFF) * valid, same)


def parse_provisioning(data: bytes) -> Provisioning:
    """Nothing from what is not that page."""
    if data[1] != 0xB2:
        return Provisioning()
    flags = data[5]
    return Provisioning(bool(flags & 0x80), bool(flags & 0x40), bool(flags & 0x20), bool(flags & 0x04))


_WORDS = {
    BEYOND_THE_END: "the address is beyond the end of the LUN: it may have been made smaller",
    NO_LUN: NO_SUCH_LUN,
    0x2700: "the LUN is write protected",
    NO_SPACE: "No space left on the LUN's storage",
    NO_COMMAND: "the target does not know the command",
    INVALID_CDB: "the target refuses the command's parameters",
    0x1100: "unrecovered read error",
    0x0C00: "write error",
    0x4400: "internal target failure",
}
_KEYS = {
    2: "the LUN is not ready",
    3: "medium error",
    4: "hardware error",
    5: "illegal request",
    6: "unit attention",
    7: "write protected",
    11: "the command was aborted",
}


def words(status: int, key: int, ascq: int) -> str:
    """A status and its sense, for people."""
    if status == CHECK_CONDITION:
        text = _WORDS.get(ascq) or _WORDS.get(ascq & 0xFF00)
        return text or f"{_KEYS.get(key, f'sense key {key}')} (sense code {ascq >> 8:02x}/{ascq & 255:02x})"
    named = {
        BUSY: "the target is busy",
        TASK_SET_FULL: "the target's task set is full",
        TASK_ABORTED: "the target has aborted the command",
        RESERVATION_CONFLICT: "another initiator has reserved the LUN",
        CANCELLED: "the connection to the target was lost",
        FAILED: "the command failed",
        TIMED_OUT: "the target did not answer in time",
    }
    return named.get(status, f"SCSI status {status:#x}")
