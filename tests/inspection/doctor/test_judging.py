"""What is a problem and what is to be done about it, from plain facts."""

from __future__ import annotations

import pytest

from mpconv.inspection.doctor import nfs_refusals, pairing
from mpconv.inspection.doctor.findings import Cell, Choice, Examination
from mpconv.inspection.doctor.local import mounted
from mpconv.inspection.doctor.nfs_refusals import Asked, covers
from mpconv.inspection.doctor.rpc import Export
from mpconv.inspection.doctor.speed import Places
from mpconv.inspection.doctor.texts import lines, summary
from mpconv.model.errors import Absent, Denied, Unreachable
from mpconv.model.extent import Extent, Kind
from mpconv.transports.identity import Verdict
from mpconv.transports.nfs.url import parse

MiB = 1 << 20


def pair(**target: object) -> Examination:
    """A target that was checked beside a source of 8 MiB, 5 of them data."""
    source = Examination("a", "source", opened=True, size=8 * MiB, guest_size=8 * MiB, data_size=5 * MiB)
    found = Examination("b", "target", opened=True, writable=True, size=8 * MiB, **target)
    pairing.check(source, found, Verdict.DIFFERENT)
    return found


def codes(found: Examination) -> list[str]:
    return [one.code for one in found.problems]


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ({}, []),
        ({"fixed": True}, []),
        ({"busy": "it is mounted"}, ["in-use"]),
        ({"free": 5 * MiB}, []),
        ({"free": 5 * MiB - 1}, ["no-room"]),
        ({"free": 4 * MiB, "used": MiB}, []),
        ({"free": 0, "fixed": True}, []),
    ],
)
def test_room_and_use(target: dict[str, object], wanted: list[str]) -> None:
    assert codes(pair(**target)) == wanted


@pytest.mark.parametrize(("free", "wanted"), [(8 * MiB, []), (8 * MiB - 1, ["little-room"])])
def test_room_for_a_source_whose_zeros_nobody_knows(free: int, wanted: list[str]) -> None:
    source = Examination("a", "source", opened=True, guest_size=8 * MiB)
    target = Examination("b", "target", creatable=True, free=free)
    pairing.check(source, target, Verdict.DIFFERENT)
    assert (codes(target), [one.code for one in target.advice]) == ([], wanted)


@pytest.mark.parametrize(("size", "wanted"), [(8 * MiB, []), (8 * MiB - 512, ["too-small"])])
def test_sizes(size: int, wanted: list[str]) -> None:
    source = Examination("a", "source", opened=True, guest_size=8 * MiB)
    for fixed in (True, False):
        target = Examination("b", "target", opened=True, size=size, fixed=fixed)
        pairing.check(source, target, Verdict.DIFFERENT)
        assert codes(target) == (wanted if fixed else [])


def test_a_target_that_is_not_there() -> None:
    for creatable, wanted in ((True, []), (False, ["not-creatable"])):
        target = Examination("b", "target", creatable=creatable)
        target.problem("missing", "No such file", "")
        pairing.check(Examination("a", "source"), target, Verdict.DIFFERENT)
        assert codes(target) == wanted


ADDRESS = parse("nfs://host/srv/images/a.raw")


def asked(**facts: object) -> Asked:
    told = {"port": 2049, "mount_port": 20048, "versions": ["3"], "why": "", "low_ports": True} | facts
    return Asked(**told)


def refused(how: Asked, error: Exception, address: object = ADDRESS) -> tuple[str, str, str]:
    found = Examination("x")
    nfs_refusals.refused(found, address, how, error)
    [one] = found.problems
    return one.code, one.what, one.fix


EVERYBODY, OTHERS = Export("/srv", []), Export("/srv", ["10.0.0.7", "rack3"])
NO = Absent("no", image="x")


@pytest.mark.parametrize(
    ("how", "code", "what", "fix"),
    [
        (asked(exports=[]), "export", "exports nothing", "exportfs -ra"),
        (asked(exports=[Export("/srv/images2", [])]), "export", "exports /srv/images2", "use one of these"),
        (asked(exports=[Export(f"/{n}", []) for n in range(12)]), "export", "/7 and 4 more", "use one"),
        (asked(exports=[OTHERS]), "export", "which is for 10.0.0.7, rack3, refuses this host", "/srv HOST(rw"),
        (asked(exports=[EVERYBODY], low_ports=False), "export", "ports over 1023", "run as root"),
        (
            asked(exports=[EVERYBODY], root_mounts=True),
            "missing-directory",
            "no directory /srv/images",
            "see to the name",
        ),
        (asked(), "export", "cannot be mounted: no", "see to the name, or export it"),
    ],
)
def test_a_mount_that_was_refused(how: Asked, code: str, what: str, fix: str) -> None:
    found = refused(how, NO)
    assert found[0] == code and what in found[1] and fix in found[2]


def test_other_refusals() -> None:
    assert refused(asked(low_ports=False), Unreachable("no"))[0] == "ports"
    assert refused(asked(why="it serves only ports below 1024"), Unreachable("no"))[0] == "refused"
    assert refused(asked(), TimeoutError())[0] == "silent"
    code, what, fix = refused(asked(), Denied("Permission denied"), parse("nfs://host/srv/a?uid=33"))
    assert code == "permission" and "user 33" in what and "nfs://host/srv/a?uid=N&gid=N" in fix
    assert "no_root_squash" not in fix


@pytest.mark.parametrize(
    ("export", "directory", "holds"),
    [("/", "/a", True), ("/a", "/a", True), ("/a", "/a/b", True), ("/a/", "/a/b", True), ("/a", "/ab", False)],
)
def test_which_export_holds_a_directory(export: str, directory: str, holds: bool) -> None:
    assert covers(export, directory) == holds


def test_file_systems_by_their_device_number() -> None:
    mounts = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:35 / /mnt rw,relatime - nfs4 10.0.0.9:/export rw,vers=4.2\n"
    )
    assert mounted(0o0 << 8 | 35, mounts) == ("nfs4", "10.0.0.9:/export")
    assert mounted(8 << 8 | 1, mounts) == ("ext4", "/dev/sda1")
    assert mounted(8 << 8 | 2, mounts) == ("", "")


def test_requests_lie_in_data_and_inside_of_it() -> None:
    data = [Extent(3 * MiB, 2 * MiB), Extent(8 * MiB, MiB + 5)]
    places = Places([Extent(0, 3 * MiB, Kind.ZERO), *data, Extent(7 * MiB, 4096)], 16 * MiB)
    for length in (4096, MiB):
        assert places.fits(length)
        for _ in range(100):
            at = places.take(length)
            assert any(extent.start <= at and at + length <= extent.end for extent in data)
    assert {places.take(MiB) for _ in range(9)} == {3 * MiB, 4 * MiB, 8 * MiB}


def test_requests_where_nothing_is_known_of_data() -> None:
    places = Places([], 6000)
    assert places.fits(4096) and not places.fits(MiB)
    assert places.take(4096) == 0


def test_what_people_read() -> None:
    found = Examination("nfs://host/a\x1b[2J", "target")
    found.fact("hole-map", True, "yes, " + "a long word " * 12)
    found.cells = [Cell(False, MiB, 4, 10, 0.0123, 0.5, 3e8)]
    found.choice = Choice(2, 8, "2 cores")
    found.problem("too-small", "it is too small", "make it larger")
    found.advise("not-thin", "it is not thin", "make it so")
    told = list(lines(found))
    assert told[0] == "nfs://host/a\\x1b[2J  (target)"
    assert told[1].startswith("  hole map        yes, a long word") and told[2].startswith(" " * 18 + "long word")
    assert max(map(len, told)) <= 100
    assert "  read 1 MiB            4      12 ms     500 ms     286.1 MiB/s" in told
    assert "  mpconv chooses  --workers 2 -m 8: 2 cores" in told
    assert "  PROBLEM         it is too small" in told and "    to do         make it larger" in told
    assert max(map(len, lines(found, 80))) <= 80
    assert summary([found]) == "1 problem, 1 piece of advice"
    assert summary([Examination("a"), Examination("b")]) == "nothing is in the way"
