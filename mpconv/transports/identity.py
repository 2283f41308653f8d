"""What a store is, apart from the names it goes by, and whether two of them are one. Pure.

What is told of a store is of one of three kinds. What it lies on, as this host knows it (`Part`), is certain. A file of
a server (`File`) is most probably another one's when number, size and times to the nanosecond are equal: no two files
have these alike, but for servers that are copies of each other. What a LUN calls itself (`Disk`) is promised to be
unique of some names, and made up of counters of others: there the contents decide.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from itertools import combinations, product

from msgspec import Struct

from mpconv.model.units import SECTOR, align_up

Key = tuple[object, ...]
ALLOW = "--allow-same-image"
END = 1 << 63
"""Of something whose length is not asked for."""
_TGT = "t10.IET     "


class Part(Struct, frozen=True):
    """Bytes of something that a store lies in; `key` is equal for that thing alone. `whole`: all of the range is the
    store's; False: some of it, and nobody knows which.
    """

    key: Key
    start: int = 0
    end: int = END
    whole: bool = True

    def meets(self, other: Part) -> bool:
        """Whether bytes of the one are bytes of the other. Two that use some of a range may use different ones."""
        if self.key != other.key or not (self.whole or other.whole):
            return False
        return self.start < other.end and other.start < self.end


class File(Struct, frozen=True):
    """A regular file as its file system or server tells of it; times in nanoseconds. `handle`: the server's own name
    for it, or nothing.
    """

    fileid: int
    size: int
    modified: int
    changed: int
    handle: str = ""

    def lies_between(self, before: File, after: File) -> bool:
        """Whether it may be the file that was looked at just before and just after, although somebody writes to it."""
        return all(
            min(first, last) <= here <= max(first, last)
            for first, here, last in (
                (before.size, self.size, after.size),
                (before.modified, self.modified, after.modified),
                (before.changed, self.changed, after.changed),
            )
        )


class Designators(Struct, frozen=True):
    """What names a logical unit, whichever port or target it is reached by.

    `worldwide`: names that no other LUN may have (NAA but for the locally assigned, EUI-64, UUID, SCSI name string).
    `local`: those that another server's LUN may have too (tgt makes them of target and LUN numbers): locally assigned
    NAA and that of no company, T10 vendor identification, MD5, vendor specific. `serial`: unique among those of one
    vendor and product, if the vendor keeps to it. `told`: all of them as they came, each as its kind and hexadecimal
    digits.
    """

    worldwide: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()
    serial: str = ""
    told: tuple[str, ...] = ()

    @property
    def marks(self) -> dict[str, str]:
        """By what whoever opens it again knows it: as Transport's. Ports may differ in names that are not worldwide, so
        these count only where there are no others.
        """
        if self.worldwide:
            return {"its worldwide names": ", ".join(sorted(self.worldwide))}
        found = {"its designators": ", ".join(sorted(self.told)), "its serial number": self.serial}
        return {what: name for what, name in found.items() if name}

    def same(self, other: Designators) -> bool | None:
        """Whether both name one LUN. None: they agree, but strangers may; or nothing is told."""
        if self.worldwide and other.worldwide:
            return not self.worldwide.isdisjoint(other.worldwide)
        if set(self.told) != set(other.told) or self.serial != other.serial:
            return False
        return None


class Disk(Struct, frozen=True):
    """A LUN, or a disk of this host, by what it calls itself. `peer`: the address of who serves it, and `target` and
    `lun` by which it does, nothing of a disk of this host. `here`: this host itself serves it.
    """

    size: int
    named: Designators = Designators()
    peer: str = ""
    target: str = ""
    lun: int = 0
    here: bool = False

    @property
    def counted(self) -> bool:
        """Whether tgt has made up its names, of target and LUN numbers: any other tgt makes up the same."""
        return any(name.startswith(_TGT) for name in self.named.local)


class Facts(Struct, frozen=True):
    """All that is told of a store. `key` is equal for two names of one store that this host, or one server by one
    address, knows as one. `parts`: what it lies in besides; `holders`: what holds the file system that it is a file of.
    `files`: of the file that it is, or that its bytes come from. `local`: this host opens it by a path.
    """

    key: Key
    parts: tuple[Part, ...] = ()
    holders: tuple[Part, ...] = ()
    files: tuple[File, ...] = ()
    disk: Disk | None = None
    size: int = 0
    local: bool = False

    @property
    def lies_in(self) -> tuple[Part, ...]:
        """With itself."""
        return (Part(self.key), *self.parts)


class Verdict(enum.Enum):
    """Whether two stores are one. The last four: as far as contents at random places tell."""

    DIFFERENT = "different"
    CERTAIN = "certain"
    PROBABLE = "probable"
    UNLESS_CONTENTS_DIFFER = "probable unless contents differ"
    IF_DATA_IS_THE_SAME = "probable if there is data, and the same"
    IF_ONE_FILE_IS_BEHIND = "one server's, under other names: probable if one file is behind both"
    IF_SERVED_HERE = "probable unless contents differ, if a server of this host has the file open"


def judge(one: Facts, other: Facts, one_again: Facts) -> Verdict:
    """Of two stores. `one_again`: as it was found after the other: what somebody writes to does not stay as it was."""
    if any(part.meets(its) for part in one.lies_in for its in other.lies_in):
        return Verdict.CERTAIN
    if any(_same_file(*files) for files in _pairs(one, other, one_again)):
        return Verdict.DIFFERENT if _of_one_file(one, other) else Verdict.PROBABLE
    if one.disk is not None and other.disk is not None:
        return _same_disk(one.disk, other.disk)
    for disk, file in ((one, other), (other, one)):
        if disk.disk is not None and disk.disk.here and file.local and _sectors(disk.size) == _sectors(file.size):
            return Verdict.IF_SERVED_HERE
    return Verdict.DIFFERENT


def alike_at_most(one: Facts, other: Facts) -> bool:
    """Whether they are disks of one server with nothing in common but their size: two targets that one file is behind
    get the same bytes, or each what is its own.
    """
    return judge(one, other, one) in (Verdict.DIFFERENT, Verdict.IF_ONE_FILE_IS_BEHIND)


def holds(target: Facts, source: Facts) -> bool:
    """Whether the target is a disk with the file system that the source is a file of."""
    return any(part.meets(its) for part in target.lies_in for its in source.holders)


def _pairs(one: Facts, other: Facts, one_again: Facts) -> Iterable[tuple[File, File, File]]:
    for before, after in zip(one.files, one_again.files, strict=False):
        for its in other.files:
            yield before, its, after


def _of_one_file(one: Facts, other: Facts) -> bool:
    """Whether they are known to lie in one file of this host, in parts that do not meet."""
    both = {part.key for part in one.lies_in} & {part.key for part in other.lies_in}
    return any(key[0] == "file" for key in both)


def _same_file(before: File, other: File, after: File) -> bool:
    if before.handle and before.handle == other.handle:
        return True
    return before.fileid == other.fileid and other.lies_between(before, after)


def _same_disk(one: Disk, other: Disk) -> Verdict:
    if _sectors(one.size) != _sectors(other.size):
        return Verdict.DIFFERENT
    same = one.named.same(other.named)
    if same is False and one.peer and one.peer == other.peer:
        return Verdict.IF_ONE_FILE_IS_BEHIND
    if same is not None:
        return Verdict.UNLESS_CONTENTS_DIFFER if same else Verdict.DIFFERENT
    same_target = bool(one.target) and (one.target, one.lun) == (other.target, other.lun)
    if one.counted and other.counted and one.target and other.target and not same_target:
        return Verdict.DIFFERENT  # of one tgt a LUN belongs to one target: these are of two
    if same_target or (one.named != Designators() and one.peer == other.peer):
        return Verdict.UNLESS_CONTENTS_DIFFER
    return Verdict.IF_DATA_IS_THE_SAME


def _sectors(size: int) -> int:
    return align_up(size, SECTOR)


def suspects(found: Sequence[Facts]) -> list[tuple[int, int]]:
    """Pairs, by their places, that have anything in common: all others are different. For many, of which few have: the
    files of one disk have nothing in common by that.
    """
    groups: dict[object, list[int]] = {}
    sides: dict[object, tuple[list[int], list[int]]] = {}
    for number, facts in enumerate(found):
        lies_in: set[object] = {part.key for part in facts.lies_in}
        marks = lies_in | {file.fileid for file in facts.files} | {file.handle for file in facts.files if file.handle}
        file_on: set[object] = {part.key for part in facts.holders}
        if facts.local:
            file_on.add(("served here", _sectors(facts.size)))
        if facts.disk is not None:
            size = _sectors(facts.disk.size)
            marks |= {
                ("disk", size, facts.disk.named.serial),
                *facts.disk.named.worldwide,
                ("peer", size, facts.disk.peer),
            }
            if facts.disk.here:
                lies_in.add(("served here", size))
        for mark in marks:
            groups.setdefault(mark, []).append(number)
        for side, its in enumerate((file_on, lies_in)):
            for mark in its:
                sides.setdefault(mark, ([], []))[side].append(number)
    pairs = {pair for group in groups.values() for pair in combinations(group, 2)}
    for files, disks in sides.values():
        pairs |= {(min(pair), max(pair)) for pair in product(files, disks) if pair[0] != pair[1]}
    return sorted(pairs)
