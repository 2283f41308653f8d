"""SCSI commands and answers, by plain values."""

from __future__ import annotations

import pytest

from mpconv.transports.iscsi import scsi


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
        scsi.write_same16(1, 2, unmap=True),
        scsi.extended_copy(108),
    ):
        assert len(cdb) == lengths[cdb[0] >> 5], cdb.hex()


def test_read_and_write_name_block_and_count() -> None:
    assert scsi.read16(0x0102030405060708, 0x0A0B0C0D).hex() == "880001020304050607080a0b0c0d0000"
    assert scsi.write16(1, 2048).hex() == "8a000000000000000001000008000000"


def test_write_same() -> None:
    assert scsi.write_same16(0x0102030405060708, 0x0A0B0C0D, unmap=False).hex() == "930001020304050607080a0b0c0d0000"
    assert scsi.write_same16(1, 2048, unmap=True).hex() == "9308000000000000000100000800" + "0000"


def test_unmap_parameters() -> None:
    assert scsi.unmap_parameters(8, 16).hex() == "0016001000000000" + "0000000000000008" + "00000010" + "00000000"


def test_extended_copy_as_spc_4_lays_it_out() -> None:
    assert scsi.extended_copy(108).hex() == "83" + "00" + "00" * 8 + "0000006c" + "00" + "00"
    source, target = (bytes.fromhex("01030010") + bytes([0x60, *bytes(14), number]) for number in (1, 2))
    found = scsi.copy_parameters(7, source, target, 4096, source_lba=0x0102030405060708, lba=9, blocks=0x1234).hex()
    header = "07" + "10" + "0040" + "00000000" + "0000001c" + "00000000"
    descriptor = "e4" + "00" + "0000" + "01030010" + "60" + "00" * 14 + "{}" + "00000000" + "00" + "001000"
    segment = "02" + "00" + "0018" + "0000" + "0001" + "0000" + "1234" + "0102030405060708" + "0000000000000009"
    assert found == header + descriptor.format("01") + descriptor.format("02") + segment


@pytest.mark.parametrize(("fifth", "offered"), [(0x00, False), (0x08, True), (0xF7, False)])
def test_third_party_copies_are_offered(fifth: int, offered: bool) -> None:
    assert scsi.parse_third_party_copy(bytes(5) + bytes([fifth]) + bytes(30)) is offered


NAA, LOCAL, EUI = "01030008" + "5" * 16, "01030008" + "3" * 16, "01020008" + "0011223344556677"
NOBODYS = "01030010" + "60000000" + "00000000" + "0e00000000010001"
VENDOR, PORT, CUT = "02010004" + "41424344", "01130008" + "5" * 16, "01030010" + "5" * 16


@pytest.mark.parametrize(
    ("descriptors", "name"),
    [
        (NAA, NAA),
        (VENDOR + EUI + NAA, NAA),
        (VENDOR + LOCAL + EUI, EUI),
        (LOCAL, None),
        (NOBODYS, None),
        (NOBODYS + EUI, EUI),
        ("01020008" + "0" * 15 + "1", None),
        ("01030008" + "2123000000456789", None),
        ("01030008" + "2123000001456789", "01030008" + "2123000001456789"),
        (PORT, None),
        (VENDOR, None),
        (CUT, None),
        ("", None),
    ],
)
def test_the_name_of_a_lun_in_the_whole_world(descriptors: str, name: str | None) -> None:
    data = bytes.fromhex("0083" + f"{len(descriptors) // 2:04x}" + descriptors)
    expected = None if name is None else bytes.fromhex("01" + name[2:4] + "00" + name[6:])
    assert scsi.parse_designator(data) == expected
    assert scsi.parse_designator(bytes(2) + data[2:]) is None


def test_what_a_lun_calls_itself() -> None:
    assert scsi.parse_serial(bytes.fromhex("0080000c") + b"  beaf11\0\0\0\0" + bytes(8)) == "beaf11"
    assert scsi.parse_serial(bytes.fromhex("008300ff") + b"beaf11") == ""
    named = "02010003616263" + "0103000860000000000000aa"
    port = "0114000400000001"
    page = bytes.fromhex("0083001b" + named + port + "0103000860") + bytes(20)
    assert scsi.parse_names(page) == ["1:616263", "3:60000000000000aa"], "not the port's, nor what is cut off"
    assert scsi.parse_names(bytes(2) + page[2:]) == []


@pytest.mark.parametrize(("flags", "thin", "zeroes"), [("0000", 0, 0), ("8000", 1, 0), ("c000", 1, 1), ("4003", 0, 1)])
def test_capacity(flags: str, thin: int, zeroes: int) -> None:
    data = bytes.fromhex("00000000000007ff" + "00001000" + "0003" + flags) + bytes(16)
    assert scsi.parse_capacity(data) == scsi.Capacity(2048, 4096, bool(thin), bool(zeroes))


def test_block_limits() -> None:
    head = "00b0003c00800000" + "00000100" + "00000040"
    unmap = "00000fff" + "00000001" + "00000010" + "80000008"
    same = "0000000100000002"
    page = bytes.fromhex(head + "00000000" + unmap + same) + bytes(20)
    assert scsi.parse_block_limits(page) == scsi.BlockLimits(256, 64, 4095, 1, 16, 8, (1 << 32) + 2)
    invalid = page[:32] + bytes.fromhex("00000008") + page[36:]
    assert scsi.parse_block_limits(invalid).unmap_aligned == 0, "without UGAVALID"
    assert scsi.parse_block_limits(page[:28] + bytes(36)).unmap_granule == 1


def test_block_limits_that_end_before_those_of_unmap() -> None:
    page = bytes.fromhex("00b0000c00000000" + "00000100" + "00000040") + bytes(48)
    assert scsi.parse_block_limits(page) == scsi.BlockLimits(largest_transfer=256, optimal_transfer=64)


def test_pages_that_are_not_what_was_asked_for_say_nothing() -> None:
    limits = bytes.fromhex("0000003c0080000000000100000000000000000000000fff") + bytes(40)
    assert scsi.parse_block_limits(limits) == scsi.BlockLimits()
    for page, told in (
        ("00b2000400e40200", scsi.Provisioning(True, True, True, True)),
        ("00b2000400800200", scsi.Provisioning(True, False, False, False)),
        ("00b2000400680200", scsi.Provisioning(False, True, True, False)),
        ("00b2000400240200", scsi.Provisioning(False, False, True, True)),
        ("0000000400e40200", scsi.Provisioning(False, False, False, None)),
    ):
        assert scsi.parse_provisioning(bytes.fromhex(page)) == told


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
        (0x30, 0, 0, "SCSI status 0x30"),
        (scsi.CANCELLED, 0, 0, "connection to the target was lost"),
        (scsi.TIMED_OUT, 0, 0, "did not answer in time"),
    ],
)
def test_words(status: int, key: int, ascq: int, text: str) -> None:
    assert text in scsi.words(status, key, ascq)


@pytest.mark.parametrize(
    ("status", "key", "ascq", "put_off", "interrupted"),
    [
        (scsi.BUSY, 0, 0, True, False),
        (scsi.TASK_SET_FULL, 0, 0, True, False),
        (scsi.CHECK_CONDITION, scsi.NOT_READY, 0x0401, True, False),
        (scsi.CHECK_CONDITION, scsi.NOT_READY, 0x3A00, False, False),
        (scsi.CHECK_CONDITION, scsi.UNIT_ATTENTION, 0x2900, False, True),
        (scsi.CHECK_CONDITION, scsi.ABORTED, 0x4B00, False, True),
        (scsi.TASK_ABORTED, 0, 0, False, True),
        (scsi.RESERVATION_CONFLICT, 0, 0, False, False),
        (scsi.CHECK_CONDITION, scsi.DATA_PROTECT, scsi.NO_SPACE, False, False),
        (scsi.CHECK_CONDITION, scsi.ILLEGAL_REQUEST, 0x2100, False, False),
    ],
)
def test_what_passes(status: int, key: int, ascq: int, put_off: bool, interrupted: bool) -> None:
    assert scsi.is_put_off(status, key, ascq) == put_off
    assert scsi.is_interrupted(status, key) == interrupted


def test_only_one_answer_says_that_there_is_no_room() -> None:
    """Others of the same key say that nothing may be written, and 08/00 tells of any failure behind the LUN."""
    assert scsi.is_full(scsi.CHECK_CONDITION, scsi.DATA_PROTECT, scsi.NO_SPACE)
    assert not scsi.is_full(scsi.CHECK_CONDITION, scsi.DATA_PROTECT, 0x2700)
    assert not scsi.is_full(scsi.CHECK_CONDITION, scsi.NOT_READY, 0x0800)
    assert not scsi.is_full(scsi.BUSY, scsi.DATA_PROTECT, scsi.NO_SPACE)


def test_luns_of_a_target() -> None:
    """Peripheral and flat addressing; LUN 0, and one behind a bridge, are left out."""
    told = ["0000", "0002", "0001", "412c", "8001"]
    data = bytes.fromhex("00000028" + "00000000" + "".join(f"{lun:0<16}" for lun in told)) + bytes(8)
    assert scsi.parse_luns(data) == [1, 2, 300]
    assert scsi.parse_luns(data[:20]) == [], "an answer that was cut"
    assert scsi.report_luns(4096).hex() == "a0000000000000001000" + "0000"


def test_what_a_lun_is_called() -> None:
    assert scsi.parse_product(bytes(8) + b"IET     VIRTUAL-DISK    0001" + bytes(28)) == "IET VIRTUAL-DISK 0001"
    assert scsi.parse_product(bytes(64)) == ""
