"""SCSI commands and answers, by plain values."""

from __future__ import annotations

import pytest

from mpconv.transports import scsi


def test_commands_have_the_length_their_group_code_asks_for() -> None:
    lengths = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
    for cdb in (
        scsi.read16(1, 2),
        scsi.write16(1, 2),
        scsi.inquiry(64),
        scsi.inquiry_vpd(0xB0, 64),
        scsi.mode_sense6(192),
        scsi.synchronize_cache10(),
        scsi.synchronize_cache16(),
        scsi.read_capacity16(32),
        scsi.get_lba_status(5, 64),
        scsi.unmap(24),
    ):
        assert len(cdb) == lengths[cdb[0] >> 5], cdb.hex()


def test_read_and_write_name_block_and_count() -> None:
    assert scsi.read16(0x0102030405060708, 0x0A0B0C0D).hex() == "880001020304050607080a0b0c0d0000"
    assert scsi.write16(1, 2048).hex() == "8a000000000000000001000008000000"


def test_unmap_parameters() -> None:
    assert scsi.unmap_parameters(8, 16).hex() == "0016001000000000" + "0000000000000008" + "00000010" + "00000000"


@pytest.mark.parametrize(("flags", "thin", "zeroes"), [("0000", 0, 0), ("8000", 1, 0), ("c000", 1, 1), ("4003", 0, 1)])
def test_capacity(flags: str, thin: int, zeroes: int) -> None:
    data = bytes.fromhex("00000000000007ff" + "00001000" + "0003" + flags) + bytes(16)
    assert scsi.parse_capacity(data) == scsi.Capacity(2048, 4096, bool(thin), bool(zeroes))


def test_pages_that_are_not_what_was_asked_for_say_nothing() -> None:
    limits = bytes.fromhex("00b0003c0080000000000100000000000000000000000fff") + bytes(40)
    assert scsi.parse_block_limits(limits) == scsi.BlockLimits(256, 4095)
    assert scsi.parse_block_limits(b"\0\0" + limits[2:]) == scsi.BlockLimits(0, 0)
    assert scsi.parse_unmap_supported(bytes.fromhex("00b2000400e40200"))
    assert not scsi.parse_unmap_supported(bytes.fromhex("00b2000400640200"))
    assert not scsi.parse_unmap_supported(bytes.fromhex("0000000400e40200"))


def test_lba_status() -> None:
    first = bytes.fromhex("0000000000000000" + "00000008" + "00000000")
    second = bytes.fromhex("0000000000000008" + "00000010" + "01000000")
    answer = (36).to_bytes(4, "big") + bytes(4) + first + second + b"\xff" * 32
    assert scsi.parse_lba_status(answer) == [(0, 8, True), (8, 16, False)]
    assert scsi.parse_lba_status(answer[:39]) == [(0, 8, True)]
    assert scsi.parse_lba_status(bytes(64)) == []


@pytest.mark.parametrize(
    ("first", "why"), [(0x00, None), (0x0C, "controller"), (0x05, "CD"), (0x1B, "type 0x1b"), (0x7F, "No such LUN")]
)
def test_what_is_a_disk(first: int, why: str | None) -> None:
    found = scsi.not_a_disk(bytes([first]) + bytes(35))
    assert found is None if why is None else found is not None and why in found


def test_write_protection() -> None:
    assert scsi.parse_write_protected(bytes.fromhex("61009000"))
    assert not scsi.parse_write_protected(bytes.fromhex("61001000"))


@pytest.mark.parametrize(
    ("status", "key", "ascq", "text"),
    [
        (2, 7, 0x2700, "write protected"),
        (2, 7, 0x2707, "No space left"),
        (2, 5, 0x2500, "No such LUN"),
        (2, 3, 0x1101, "unrecovered read error"),
        (2, 4, 0x9901, "hardware error (sense code 99/01)"),
        (2, 14, 0x9901, "sense key 14"),
        (0x18, 0, 0, "reserved"),
        (0x40, 0, 0, "SCSI status 0x40"),
        (scsi.CANCELLED, 0, 0, "connection to the target was lost"),
        (scsi.TIMED_OUT, 0, 0, "did not answer in time"),
    ],
)
def test_words(status: int, key: int, ascq: int, text: str) -> None:
    assert text in scsi.words(status, key, ascq)
