"""By what a LUN is known: what is read from the pages, and how hostile pages are survived."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.model.units import MiB
from mpconv.transports.base import Access
from mpconv.transports.identity import Designators
from mpconv.transports.iscsi import identity as iscsi_identity
from mpconv.transports.iscsi import store as iscsi_transport
from mpconv.transports.iscsi.identity import parse
from tests.support.faulty_target import FaultyTarget
from tests.support.faulty_target.commands import vpd

NAA6, NAA5, NAA3 = bytes.fromhex("6001405f" + "5345523030303100" + "00000001"), b"\x50" + b"1" * 7, b"\x30" + b"1" * 7
EUI, UUID = bytes(range(9, 17)), b"\x10\0" + b"u" * 16
NAA0 = bytes.fromhex("60000000000000000e00000000010001")
NO_SERIAL = bytes(4)


def entry(kind: int, name: bytes, *, code: int = 1, association: int = 0) -> bytes:
    return bytes([code, association << 4 | kind, 0, len(name)]) + name


def page(*entries: bytes) -> bytes:
    return vpd(0x83, b"".join(entries))


@pytest.mark.parametrize(
    ("entries", "worldwide", "local"),
    [
        ([entry(3, NAA6)], {f"naa.{NAA6.hex()}"}, set()),
        ([entry(3, NAA5), entry(2, EUI)], {f"naa.{NAA5.hex()}", f"eui.{EUI.hex()}"}, set()),
        ([entry(3, NAA3), entry(1, b"IET     00010001", code=2)], set(), {f"naa.{NAA3.hex()}", "t10.IET     00010001"}),
        ([entry(8, b"IQN.2020-01.org.x:a\0\0", code=3)], {"iqn.2020-01.org.x:a"}, set()),
        ([entry(8, b"disk 1", code=3), entry(7, b"m" * 16)], set(), {"disk 1", f"7.{(b'm' * 16).hex()}"}),
        ([entry(10, UUID)], {f"uuid.{(b'u' * 16).hex()}"}, set()),
        ([entry(3, NAA6, association=1), entry(2, EUI, association=2)], set(), set()),
        ([entry(3, NAA6[:9]), entry(2, EUI[:7])], set(), {f"naa.{NAA6[:9].hex()}", f"eui.{EUI[:7].hex()}"}),
        ([entry(3, NAA0)], set(), {f"naa.{NAA0.hex()}"}),
        ([entry(3, b"\x60" + bytes(15)), entry(2, b"\xff" * 8), entry(1, b" " * 8, code=2)], set(), set()),
    ],
)
def test_names_by_their_reach(entries: list[bytes], worldwide: set[str], local: set[str]) -> None:
    found = parse(page(*entries), NO_SERIAL)
    assert (found.worldwide, found.local) == (worldwide, local)


def test_only_what_is_there_as_a_whole() -> None:
    whole = page(entry(3, NAA6), entry(2, EUI))
    assert parse(whole[:-1], NO_SERIAL).told == (f"3:{NAA6.hex()}",)
    assert parse(bytes(2) + whole[2:], NO_SERIAL) == Designators()
    assert parse(whole[:3], NO_SERIAL) == Designators()


@given(names=st.binary(max_size=300), serial=st.binary(min_size=4, max_size=260), good=st.booleans())
def test_any_bytes_are_survived(names: bytes, serial: bytes, good: bool) -> None:
    found = parse(vpd(0x83, names) if good else names, serial)
    assert len(found.told) <= len(names) / 4
    assert found.same(found) in {True, None}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([entry(3, NAA6)], [entry(2, EUI), entry(3, NAA6)], True),
        ([entry(3, NAA6)], [entry(3, NAA5)], False),
        ([entry(3, NAA3)], [entry(3, NAA3)], None),
        ([entry(3, NAA3)], [entry(1, b"x" * 8, code=2)], False),
        ([entry(3, NAA6)], [], False),
        ([], [], None),
    ],
)
def test_whether_two_are_one(one: list[bytes], other: list[bytes], same: bool | None) -> None:
    first, second = parse(page(*one), NO_SERIAL), parse(page(*other), NO_SERIAL)
    assert first.same(second) is second.same(first) is same


def named(url: str) -> Designators:
    async def run() -> Designators:
        store = await iscsi_transport.connect(url, Access.READ)
        await store.close()
        return store.designators

    return asyncio.run(run())


def test_a_real_lun_has_only_names_that_others_may_have(lun: Any) -> None:
    found, other = named(lun(MiB).url), named(lun(MiB).url)
    assert not found.worldwide and found.local and found.serial
    assert found.same(other) is False and found.same(named(lun(MiB).url)) is False


@pytest.mark.parametrize("ports", [0, 30, 600])
def test_one_round_trip_more_only_for_a_long_page(ports: int, tmp_path: Path) -> None:
    """A target with many ports names them before the LUN; a page of 7 KiB is not read to its end."""
    backing = tmp_path / "lun.img"
    backing.write_bytes(bytes(MiB))
    names = page(*[entry(4, struct.pack(">I", number), association=1) for number in range(ports)], entry(3, NAA6))

    def on_command(target: FaultyTarget, session: Any, name: str, cdb: bytes, n: int) -> bytes | None:
        return names if name == "INQUIRY" and cdb[1:3] == b"\1\x83" else None

    with FaultyTarget(path=backing, serial=b" 12345 ", on_command=on_command) as target:
        found = named(target.url())
        assert target.counts["INQUIRY"] == 5 + (len(names) > iscsi_identity.FIRST_BYTES)
    assert found.serial == "12345"
    assert found.worldwide == ({f"naa.{NAA6.hex()}"} if ports < 600 else set())
