"""The SCSI commands of a faulty target, on its file."""

from __future__ import annotations

import ctypes
import os
import struct

from tests.support.faulty_target.target import CHECK_CONDITION, FaultyTarget, Status, sense

_NAMES = {
    0x00: "TUR",
    0x12: "INQUIRY",
    0x1A: "MODESENSE",
    0x25: "RC10",
    0x28: "READ10",
    0x2A: "WRITE10",
    0x35: "SYNC10",
    0x41: "WS10",
    0x42: "UNMAP",
    0x83: "XCOPY",
    0x88: "READ16",
    0x8A: "WRITE16",
    0x91: "SYNC16",
    0x93: "WS16",
    0xA0: "REPORTLUNS",
}
_LONG = {0x88, 0x8A, 0x93}
_MOST_DESCRIPTORS = 64
_MOST_BLOCKS = 0xFFFFFFFF
_PUNCH = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)

GOOD: Status = (0, b"")


def name_of(cdb: bytes) -> str:
    """What hooks and counts call the command."""
    if cdb[0] == 0x9E:
        return "GLBA" if cdb[1] & 31 == 0x12 else "RC16"
    return _NAMES.get(cdb[0], hex(cdb[0]))


def range_of(cdb: bytes) -> tuple[int, int]:
    """First block and number of blocks of a read, a write or a WRITE SAME."""
    if cdb[0] in _LONG:
        first, count = struct.unpack_from(">QI", cdb, 2)
    else:
        first, count = struct.unpack_from(">I", cdb, 2)[0], struct.unpack_from(">H", cdb, 7)[0]
    return int(first), int(count)


def lun_of(header: bytes) -> int:
    """The number in a command's header."""
    lun = int(struct.unpack_from(">H", header, 8)[0])
    return lun & 0x3FFF if lun >> 14 == 1 else lun


def _bad(key: int, asc: int, ascq: int = 0) -> Status:
    return CHECK_CONDITION, sense(key, asc, ascq)


_BEYOND = _bad(5, 0x21)
_BAD_CDB = _bad(5, 0x24)
_BAD_LIST = _bad(5, 0x26)


def execute(target: FaultyTarget, name: str, header: bytes, data: bytes, wanted: int) -> bytes | Status:
    """Carry it out: the data that it gives, or its status."""
    cdb, lun = header[32:48], lun_of(header)
    if name == "INQUIRY":
        return _inquiry(target, cdb, lun)
    if name == "REPORTLUNS":
        body = b"".join(struct.pack(">HHI", number, 0, 0) for number in sorted(target.luns))
        return (struct.pack(">II", len(body), 0) + body)[:wanted]
    if lun not in target.luns:
        return _bad(5, 0x25)
    blocks = target.size // target.block
    match name:
        case "TUR":
            return GOOD
        case "MODESENSE":
            return bytes([3, 0, 0x80 if target.wp else 0, 0])[: cdb[4]]
        case "RC10":
            return struct.pack(">II", min(blocks - 1, 0xFFFFFFFF), target.block)
        case "RC16":
            return _capacity(target)[: struct.unpack_from(">I", cdb, 10)[0]]
        case "GLBA":
            return lba_status(target, cdb)[: struct.unpack_from(">I", cdb, 10)[0]]
        case "READ10" | "READ16" | "WRITE10" | "WRITE16":
            return _transfer(target, name, cdb, data)
        case "UNMAP":
            return _unmap(target, data)
        case "WS10" | "WS16":
            return _write_same(target, cdb, data)
        case "SYNC10" | "SYNC16":
            os.fsync(target.fd)
            return GOOD
    return _bad(5, 0x20)


def vpd(page: int, body: bytes) -> bytes:
    """A page of vital product data, as INQUIRY gives it."""
    return bytes([0, page]) + struct.pack(">H", len(body)) + body


def _inquiry(target: FaultyTarget, cdb: bytes, lun: int) -> bytes | Status:
    room = struct.unpack_from(">H", cdb, 3)[0]
    if not cdb[1] & 1:
        kind = 0 if lun in target.luns else 0x7F
        text = target.vendor.ljust(8)[:8] + b"FAKE DISK".ljust(16) + b"0001"
        return (bytes([kind, 0, 6, 2, 31, 0, 0, 2]) + text)[:room]
    match cdb[2]:
        case 0:
            body = bytes([0, 0x80, 0x83, *([0xB0] if target.b0 else []), 0xB2])
        case 0x80:
            body = target.serial
        case 0x83:
            body = target.designators()
        case 0xB0 if target.b0:
            body = _limits(target)
        case 0xB2:
            zeroes = target.lbprz if target.page_lbprz is None else target.page_lbprz
            flags = (0x80 if target.lbpu else 0) | (0x60 if target.lbpws else 0) | (4 if zeroes else 0)
            body = bytes([0, flags, 2, 0])
        case _:
            return _BAD_CDB
    return vpd(cdb[2], body)[:room]


def _limits(target: FaultyTarget) -> bytes:
    page = bytearray(60)
    granularity = target.gran if target.told_gran is None else target.told_gran
    struct.pack_into(">HII", page, 2, 1, target.max_xfer, 0)
    most = target.max_unmap if target.lbpu else 0
    struct.pack_into(">IIII", page, 16, most, target.unmap_desc, granularity, target.align | 0x80000000)
    struct.pack_into(">Q", page, 32, target.max_ws)
    return bytes(page)


def _capacity(target: FaultyTarget) -> bytes:
    out = bytearray(32)
    struct.pack_into(">QI", out, 0, target.size // target.block - 1, target.block)
    struct.pack_into(">H", out, 14, (0x8000 if target.thin else 0) | (0x4000 if target.lbprz else 0))
    return bytes(out)


def lba_status(target: FaultyTarget, cdb: bytes, *, first_times: int = 1, count_times: int = 1) -> bytes:
    """GET LBA STATUS from the file's holes; in other units when told."""
    block, at, out = target.block, struct.unpack_from(">Q", cdb, 2)[0] * target.block, b""
    number = 0
    while at < target.size and number < _MOST_DESCRIPTORS:
        try:
            data = os.lseek(target.fd, at, os.SEEK_DATA)
        except OSError:
            data = target.size
        end, state = (data, 1) if data > at else (os.lseek(target.fd, at, os.SEEK_HOLE), 0)
        count = min(_MOST_BLOCKS, (min(end, target.size) - at) // block)
        out += struct.pack(">QIB3x", at // block * first_times, count * count_times, state)
        at += count * block
        number += 1
    return struct.pack(">I4x", len(out) + 4) + out


def _transfer(target: FaultyTarget, name: str, cdb: bytes, data: bytes) -> bytes | Status:
    first, count = range_of(cdb)
    if (first + count) * target.block > target.size:
        return _BEYOND
    if target.max_xfer and count > target.max_xfer:
        target.say("too large:", name, count)
        return _BAD_CDB
    if name.startswith("READ"):
        return os.pread(target.fd, count * target.block, first * target.block)
    if target.wp:
        return _bad(7, 0x27)
    os.pwrite(target.fd, data, first * target.block)
    target.bytes_written += len(data)
    return GOOD


def _punch(target: FaultyTarget, first: int, count: int) -> None:
    offset, length = ctypes.c_long(first * target.block), ctypes.c_long(count * target.block)
    if _libc.fallocate(target.fd, _PUNCH, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _unmap(target: FaultyTarget, data: bytes) -> Status:
    number = (len(data) - 8) // 16
    if number > target.unmap_desc:
        return _BAD_LIST
    for at in range(8, 8 + 16 * number, 16):
        first, count = struct.unpack_from(">QI", data, at)
        if count > target.max_unmap:
            return _BAD_LIST
        if (first + count) * target.block > target.size:
            return _BEYOND
        start = -(-(first - target.align) // target.gran) * target.gran + target.align
        end = (first + count - target.align) // target.gran * target.gran + target.align
        if end > start:
            _punch(target, start, end - start)
    return GOOD


def _write_same(target: FaultyTarget, cdb: bytes, data: bytes) -> Status:
    first, count = range_of(cdb)
    if count == 0 or (target.max_ws and count > target.max_ws):
        target.say("WRITE SAME too large:", count)
        return _BAD_CDB
    if (first + count) * target.block > target.size:
        return _BEYOND
    if target.wp:
        return _bad(7, 0x27)
    if cdb[1] & 8 and not any(data):
        _punch(target, first, count)
    else:
        for at in range(0, count, 4096):
            os.pwrite(target.fd, data * min(4096, count - at), (first + at) * target.block)
    return GOOD
