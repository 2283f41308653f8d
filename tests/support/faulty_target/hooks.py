"""Faults that were seen, for a faulty target's hooks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tests.support.faulty_target.commands import lba_status, range_of
from tests.support.faulty_target.session import Session
from tests.support.faulty_target.target import Answer, FaultyTarget, Refusal, Status, unit_attention

OnCommand = Callable[[FaultyTarget, Session, str, bytes, int], Answer]
OnLogin = Callable[[FaultyTarget, Session, dict[str, str]], Refusal | None]


def unmap_hint(*, every: int = 5, phase: int = 3) -> OnCommand:
    """GOOD for an UNMAP that did nothing, now and then, as the standard allows."""

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        if name == "UNMAP" and n % every == phase:
            target.say("UNMAP ignored")
            return 0, b""
        return None

    return hook


def status_in_other_units(first_times: int, count_times: int) -> OnCommand:
    """GET LBA STATUS that counts in units that are not the LUN's blocks."""

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        if name == "GLBA":
            return lba_status(target, cdb, first_times=first_times, count_times=count_times)
        return None

    return hook


def hidden_data(start: int, end: int, fill: int = ord("D")) -> OnCommand:
    """Reads of [start, end) give bytes `fill`: where the file has a hole, GET LBA STATUS hides them."""

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        if name not in ("READ10", "READ16"):
            return None
        first, count = (number * target.block for number in range_of(cdb))
        low, high = max(first, start), min(first + count, end)
        if low >= high:
            return None
        data = os.pread(target.fd, count, first)
        return data[: low - first] + bytes([fill]) * (high - low) + data[high - first :]

    return hook


def most_sessions(most: int = 1, *, status: tuple[int, int] = (3, 2), lingers: float = 0.0) -> OnLogin:
    """No more than `most` sessions at a time; the next login is refused with that class and detail. `lingers`: for so
    many seconds one counts that has ended, from the first login on that comes after that.
    """
    counted: set[Session] = set()
    ended: dict[Session, float] = {}

    def hook(target: FaultyTarget, session: Session, keys: dict[str, str]) -> Refusal | None:
        if session.notes.get("counted"):
            return None
        now = time.monotonic()
        for other in counted - target.sessions - {session}:
            ended.setdefault(other, now)
        counted.difference_update([other for other, since in ended.items() if now - since >= lingers])
        others = len(counted - {session})
        if others >= most and keys.get("SessionType", "Normal") == "Normal" and "TargetName" in keys:
            target.say(f"refused: there are {others}")
            return *status, {}
        session.notes["counted"] = True
        counted.add(session)
        return None

    return hook


def redirecting(where: Callable[[], str], *, status: tuple[int, int] = (1, 1)) -> OnLogin:
    """Every login is sent to `where()` ("address:port,group")."""
    return lambda target, session, keys: (*status, {"TargetAddress": where()})


def news(*told: tuple[int, int], each: int = 1, of: frozenset[str] = frozenset()) -> OnCommand:
    """Every session hears each (ASC, ASCQ) `each` times in a row, at its first commands (`of` these names)."""
    statuses: list[Status] = [unit_attention(*what) for what in told for _ in range(each)]

    def hook(target: FaultyTarget, session: Session, name: str, cdb: bytes, n: int) -> Answer:
        if name in {"INQUIRY", "REPORTLUNS"} or (of and name not in of):
            return None
        left: list[Status] = session.notes.setdefault("news", list(statuses))
        return left.pop(0) if left else None

    return hook
