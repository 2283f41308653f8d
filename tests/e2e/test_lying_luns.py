"""LUNs that ignore UNMAP, and LUNs whose map lies: right bytes, and people are told."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpconv.model.units import KiB, MiB
from tests.conftest import identical, mpconv
from tests.support.faulty_target import FaultyTarget, sense
from tests.support.faulty_target.commands import lba_status, range_of
from tests.support.faulty_target.hooks import OnCommand, status_in_other_units, unmap_hint
from tests.support.faulty_target.session import Session
from tests.support.faulty_target.target import Answer

SIZE = 48 * MiB
REFUSED = (2, sense(5, 0x20))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Data in a few places, none of which begins at a round number of MiB; holes between them."""
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start, length in ((4096, 8 * KiB), (3 * MiB + 512, MiB), (9 * MiB, 12 * KiB), (25 * MiB + 4096, 4096)):
            file.seek(start)
            file.write(os.urandom(length))
    return path


def all_of(*hooks: OnCommand) -> OnCommand:
    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        return next((told for one in hooks if (told := one(target, session, name, cdb, n)) is not None), None)

    return hook


def refusing(*names: str) -> OnCommand:
    return lambda target, session, name, cdb, n: REFUSED if name in names else None


def longer_refused(most: int) -> OnCommand:
    """As LIO does: WRITE SAME of more blocks, though no limit is told."""

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        return (2, sense(5, 0x24)) if name in ("WS10", "WS16") and range_of(cdb)[1] > most else None

    return hook


def no_write_same_that_unmaps(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
    return (2, sense(5, 0x24)) if name in ("WS10", "WS16") and cdb[1] & 8 else None


SOME = [unmap_hint(every=every, phase=phase) for every, phase in ((5, 3), (37, 11), (2, 1), (1, 0))]
HINTS = [
    *(({"lbpws": False, "max_unmap": most}, hook) for most in (64, 1024, 0xFFFFFFFF) for hook in SOME),
    ({"lbpws": False, "max_unmap": 1024, "gran": 8, "align": 3, "told_gran": 1}, SOME[1]),
    ({"lbpws": False, "max_unmap": 512, "gran": 256, "told_gran": 4}, SOME[0]),
    ({"lbpws": False, "max_unmap": 4096, "gran": 3, "told_gran": 0}, SOME[3]),
    ({"lbpws": False, "max_unmap": 64}, all_of(SOME[0], refusing("GLBA"))),
    ({"lbpws": False, "max_unmap": 64}, all_of(SOME[0], refusing("WS10", "WS16"))),
    ({"lbpws": False, "max_unmap": 64}, all_of(SOME[0], status_in_other_units(8, 8))),
    ({"max_unmap": 64}, SOME[0]),
    ({"max_unmap": 64, "max_ws": 100}, SOME[0]),
    ({"max_unmap": 64}, all_of(SOME[0], no_write_same_that_unmaps)),
    ({"max_unmap": 64}, all_of(SOME[0], refusing("WS16"))),
    ({"max_unmap": 64}, all_of(SOME[0], refusing("WS10", "WS16", "GLBA"))),
    ({"max_unmap": 64}, all_of(SOME[0], longer_refused(2048))),
    ({"thin": False}, longer_refused(2048)),
]


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize(("knobs", "hook"), HINTS)
def test_zeros_over_old_data(knobs: dict[str, Any], hook: OnCommand, block: int, source: Path, tmp_path: Path) -> None:
    """Whatever of UNMAP is ignored, whatever is refused, and whatever granules there are that nobody tells."""
    lun = tmp_path / "lun.img"
    lun.write_bytes(b"\xa5" * SIZE)
    with FaultyTarget(path=lun, block=block, on_command=hook, **knobs) as target:
        done = mpconv("convert", "-n", "-W", "-f", "raw", "-O", "raw", source, target.url())
        assert done.returncode == 0, done.stderr
        assert identical(source, lun)


@pytest.mark.parametrize("block", [512, 4096])
def test_what_write_same_unmaps_needs_no_unmap(block: int, source: Path, tmp_path: Path) -> None:
    """And a limit that is not told is found out, and kept to."""
    lun = tmp_path / "lun.img"
    lun.write_bytes(b"\xa5" * SIZE)
    with FaultyTarget(path=lun, block=block, on_command=longer_refused(2048)) as target:
        assert mpconv("convert", "-n", "-W", "-f", "raw", "-O", "raw", source, target.url()).returncode == 0
        assert identical(source, lun)
        assert not target.counts["UNMAP"] and target.counts["WS16"]
        assert target.bytes_written < 4 * MiB, "zeros are not written"
    assert lun.stat().st_blocks * 512 < 4 * MiB


def in_units_of(size: int) -> OnCommand:
    """A target that takes and gives GET LBA STATUS in these units, whatever its blocks are."""

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        if name != "GLBA":
            return None
        block, target.block = target.block, size
        try:
            return lba_status(target, cdb)
        finally:
            target.block = block

    return hook


def changed(change: Callable[[list[list[int]], FaultyTarget], Any], *, at_once: int = 64) -> OnCommand:
    """What is told, as [first block, blocks, status], is changed. `at_once`: descriptors that an answer has."""

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        if name != "GLBA":
            return None
        told = lba_status(target, cdb)
        found = [list(one) for one in struct.iter_unpack(">QIB3x", told[8:])][:at_once]
        change(found, target)
        return struct.pack(">I4x", 4 + 16 * len(found)) + b"".join(struct.pack(">QIB3x", *one) for one in found)

    return hook


def scaled(first_times: float, count_times: float) -> Callable[[list[list[int]], FaultyTarget], None]:
    def change(found: list[list[int]], target: FaultyTarget) -> None:
        found[:] = [[int(first * first_times), int(count * count_times), state] for first, count, state in found]

    return change


LIES = [
    *(
        changed(scaled(first, count))
        for first in (1 / 8, 1, 8, 16)
        for count in (1 / 16, 1 / 8, 1, 8)
        if first + count != 2
    ),
    *(changed(scaled(times, times), at_once=1) for times in (1 / 8, 8, 16)),
    in_units_of(1024),
    in_units_of(65536),
    changed(lambda found, target: found.reverse()),
    changed(lambda found, target: found.clear()),
    changed(lambda found, target: found.pop(0)),
    changed(lambda found, target: [one.__setitem__(2, 7) for one in found]),
    changed(lambda found, target: [one.__setitem__(2, 1) for one in found]),
    changed(lambda found, target: found[0].__setitem__(1, target.size // target.block)),
    changed(lambda found, target: found[0].__setitem__(1, 0)),
    changed(lambda found, target: found.insert(0, [0, 100, 1])),
]


@pytest.mark.parametrize(("lie", "block"), list(zip(LIES, itertools.cycle([512, 4096]), strict=False)))
def test_a_map_that_cannot_be_true(lie: OnCommand, block: int, tmp_path: Path) -> None:
    """The copy has every byte, and people are told; so does the doctor."""
    lun, out = tmp_path / "lun.img", tmp_path / "out.raw"
    with lun.open("wb") as file:
        file.truncate(SIZE)
        for at in range(3):
            file.seek((1 + 18 * at) * MiB)
            file.write(os.urandom(3 * MiB))
    with FaultyTarget(path=lun, block=block, on_command=lie) as target:
        done = mpconv("convert", "-f", "raw", "-O", "raw", target.url(), out)
        assert done.returncode == 0, done.stderr
        assert identical(lun, out)
        told = "the target's answer to GET LBA STATUS cannot be true"
        assert told in done.stderr and "the copy begins anew and reads everything" in done.stderr
        examined = mpconv("doctor", "--seconds", "0.1", target.url())
        assert examined.returncode == 2
        assert "PROBLEM" in examined.stdout and told in " ".join(examined.stdout.split())


@pytest.mark.parametrize("times", [1 / 8, 1 / 4, 1 / 2])
def test_unmap_is_not_proved_in_other_units(times: float, tmp_path: Path) -> None:
    """From block 0 on they look right: the fifth UNMAP is ignored, and what tells so is said of blocks before it."""
    source, lun = tmp_path / "source.raw", tmp_path / "lun.img"
    source.write_bytes(bytes(512 * KiB) + os.urandom(SIZE - 512 * KiB))
    lun.write_bytes(b"\xa5" * SIZE)
    hook = all_of(unmap_hint(every=1 << 30, phase=5), changed(scaled(times, times)))
    with FaultyTarget(path=lun, lbpws=False, max_unmap=16, on_command=hook) as target:
        done = mpconv("convert", "-n", "-f", "raw", "-O", "raw", source, target.url())
        assert target.said == ["UNMAP ignored"]
    assert done.returncode == 0, done.stderr
    assert identical(source, lun)
