"""Random copies and what goes wrong in them. Pure; the same seed and number give the same case.

A case says nothing about folders, ports or processes: `run` knows these.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

KiB, MiB = 1 << 10, 1 << 20

FILE, NFS, LUN = "file", "nfs", "lun"
LUN_SIZES = (12 * MiB, 20 * MiB + 512 * 7, 32 * MiB)
_SECONDS = 2.5
"""How long a copy takes where nothing goes wrong, by its rate limit: faults hit its middle."""


class Kind(StrEnum):
    """What goes wrong."""

    WORKER_KILLED = "worker killed"
    WORKER_SILENT = "worker stopped for good"
    WORKER_PAUSED = "worker stopped for a moment"
    NURSERY_KILLED = "nursery killed"
    COMMAND_KILLED = "command killed"
    COMMAND_PAUSED = "command stopped for a moment"
    INTERRUPTED = "SIGINT"
    TERMINATED = "SIGTERM"
    SERVER_KILLED = "server killed and started again"
    CUT = "connections cut"
    REPLIES_CUT = "replies cut in the middle"
    STALLED = "nothing passes for a moment"
    REFUSED = "connections cut and refused for a moment"


REMOTE = {Kind.SERVER_KILLED, Kind.CUT, Kind.REPLIES_CUT, Kind.STALLED, Kind.REFUSED}
"""Those that need a server at the side they are meant for."""
RELAYED = REMOTE - {Kind.SERVER_KILLED}
SOURCE, TARGET = "source", "target"

_WEIGHTS = {
    Kind.WORKER_KILLED: 10,
    Kind.WORKER_SILENT: 1,
    Kind.WORKER_PAUSED: 3,
    Kind.NURSERY_KILLED: 2,
    Kind.COMMAND_KILLED: 8,
    Kind.COMMAND_PAUSED: 2,
    Kind.INTERRUPTED: 4,
    Kind.TERMINATED: 4,
    Kind.SERVER_KILLED: 10,
    Kind.CUT: 6,
    Kind.REPLIES_CUT: 8,
    Kind.STALLED: 4,
    Kind.REFUSED: 4,
}
"""A worker that is silent is waited for 30 seconds: one case in many."""


@dataclass(frozen=True, slots=True)
class Fault:
    """It comes once `at` (0 to 1) of the bytes are complete, 1: in the last flush. `seconds`: how long a moment is.

    `side`: whose server, "" for none. `worker`: which one, counted on past the last. `after`, `times`: bytes of replies
    on each connection, and how many of these are cut; from the beginning, whatever `at` is.
    """

    kind: Kind
    at: float
    side: str = ""
    seconds: float = 0.0
    worker: int = 0
    after: int = 0
    times: int = 0

    def __str__(self) -> str:
        where = f"{self.side}'s " if self.side else ""
        if self.kind is Kind.REPLIES_CUT:
            return f"{where}{self.kind}, {self.times} times after {self.after} bytes"
        return f"{where}{self.kind} at {self.at:.0%}" + (f" ({self.seconds:.1f} s)" if self.seconds else "")


@dataclass(frozen=True, slots=True)
class Case:
    """One copy. `pieces`: kind ("noise", "text", "zeros", "hole") and length; `old`: the target is there and full of
    other bytes; `rate`: bytes a second.
    """

    number: int
    seed: int
    pieces: tuple[tuple[str, int], ...]
    source_format: str
    source_place: str
    target_format: str
    target_place: str
    target_options: str
    old: bool
    compress: bool
    in_order: bool
    workers: int
    journal: bool
    verify: bool
    rate: int
    faults: tuple[Fault, ...]

    @property
    def size(self) -> int:
        """Bytes of the guest disk."""
        return sum(length for _, length in self.pieces)

    def relayed(self, side: str) -> bool:
        """Whether that side's connections go through a relay."""
        return any(fault.side == side and fault.kind in RELAYED for fault in self.faults)

    def __str__(self) -> str:
        source = f"{self.source_place} {self.source_format}"
        target = f"{self.target_place} {self.target_format}{' -c' if self.compress else ''}{' -n' if self.old else ''}"
        order = "in order" if self.in_order else "-W"
        more = f"{', journal' if self.journal else ''}{', verify' if self.verify else ''}"
        what = f"{self.size / MiB:.1f} MiB, {source} to {target}, {order}, {self.workers} worker(s){more}"
        return f"{what}: {'; '.join(map(str, self.faults)) or 'nothing'}"


def make_case(seed: int, number: int, kinds: Iterable[Kind] = Kind) -> Case:
    """The case of that number; `kinds`: what may go wrong in it."""
    chance = random.Random(f"{seed}/{number}")
    source_place, target_place = (chance.choice([FILE, NFS, NFS, LUN, LUN]) for _ in range(2))
    source_format, target_format = (chance.choice(["raw", "raw", "qcow2"]) for _ in range(2))
    fixed = source_place == LUN and source_format == "raw"
    size = chance.choice(LUN_SIZES) if fixed else 512 * chance.randrange(8 * MiB // 512, 32 * MiB // 512)
    options = f"cluster_size={chance.choice([4096, 65536, 65536, MiB])}" if target_format == "qcow2" else ""
    old, journal = chance.random() < 0.3, chance.random() < 0.5
    return Case(
        number=number,
        seed=seed,
        pieces=tuple(_pieces(chance, size)),
        source_format=source_format,
        source_place=source_place,
        target_format=target_format,
        target_place=target_place,
        target_options=options,
        old=old,
        compress=target_format == "qcow2" and chance.random() < 0.4,
        in_order=chance.random() < 0.5,
        workers=chance.randint(1, 3),
        journal=journal and not (old and target_format == "qcow2"),  # such a copy keeps none
        verify=chance.random() < 0.2,
        rate=round(size / _SECONDS),
        faults=tuple(_faults(chance, source_place, target_place, set(kinds))),
    )


def _pieces(chance: random.Random, size: int) -> Iterator[tuple[str, int]]:
    left = size
    while left:
        length = min(left, chance.choice([512, 4096, 5120, 70_144, MiB, 3 * MiB]) * chance.choice([1, 1, 2, 5]))
        yield chance.choice(["noise", "noise", "text", "text", "zeros", "hole"]), length
        left -= length


def _faults(chance: random.Random, source: str, target: str, kinds: set[Kind]) -> list[Fault]:
    sides = [side for side, place in ((SOURCE, source), (TARGET, target)) if place != FILE]
    possible = [kind for kind in Kind if kind in kinds and (sides or kind not in REMOTE)]
    if not possible:
        return []
    chosen = chance.choices(possible, [_WEIGHTS[kind] for kind in possible], k=chance.randint(1, 3))
    found = [_fault(chance, kind, sides) for kind in chosen]
    return sorted(found, key=lambda fault: fault.at)


def _fault(chance: random.Random, kind: Kind, sides: list[str]) -> Fault:
    at = chance.choice([0.0, 1.0, *(chance.uniform(0.02, 0.98) for _ in range(6))])
    side = chance.choice(sides) if kind in REMOTE else ""
    replies = (64 * KiB, 3 * MiB) if side == SOURCE else (300, 4000)  # read, and written: about 150 bytes for 1 MiB
    return Fault(
        kind,
        0.0 if kind is Kind.REPLIES_CUT else at,
        side=side,
        seconds=round(chance.uniform(0.1, 2.0), 1)
        if kind in {Kind.WORKER_PAUSED, Kind.COMMAND_PAUSED, Kind.SERVER_KILLED, Kind.STALLED, Kind.REFUSED}
        else 0.0,
        worker=chance.randrange(3),
        after=chance.randrange(*replies) if kind is Kind.REPLIES_CUT else 0,
        times=chance.choice([1, 1, 2, 5]) if kind is Kind.REPLIES_CUT else 0,
    )
