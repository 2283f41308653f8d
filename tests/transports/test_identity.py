"""Whether two stores are one, by what is known of them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mpconv.transports.identity import Designators, Disk, Facts, File, Part, Verdict, holds, judge, suspects

FILE = File(fileid=7, size=4096, modified=10, changed=11, handle="ab")
NAA = Designators(frozenset({"naa.6001405a"}), told=("3:6001405a",))
TGT = Designators(local=frozenset({"t10.IET     00010001"}), serial="beaf11", told=("1:494554", "3:30"))
DISK = Disk(4096, NAA, peer="10.0.0.1", target="iqn.a", lun=1)


def nfs(file: File, address: str = "10.0.0.1") -> Facts:
    return Facts(("nfs", address, file.fileid), files=(file,), size=file.size)


def lun(disk: Disk, port: int = 3260) -> Facts:
    return Facts(("iscsi", disk.peer, port, disk.target, disk.lun), disk=disk, size=disk.size)


def verdict(one: Facts, other: Facts, again: Facts | None = None) -> Verdict:
    """And the same from the other side. What is different for certain need not be suspect."""
    found = judge(one, other, again or one)
    if again is None:
        assert judge(other, one, other) is found
    if found is not Verdict.DIFFERENT:
        assert suspects([one, other]) == [(0, 1)]
    return found


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, Verdict.PROBABLE),
        ({"handle": ""}, Verdict.PROBABLE),
        ({"handle": "", "fileid": 8}, Verdict.DIFFERENT),
        ({"handle": "", "size": 4097}, Verdict.DIFFERENT),
        ({"handle": "", "modified": 9}, Verdict.DIFFERENT),
        ({"handle": "", "changed": 12}, Verdict.DIFFERENT),
        ({"size": 0, "modified": 20, "changed": 20}, Verdict.PROBABLE),
    ],
)
def test_files(change: dict[str, object], wanted: Verdict) -> None:
    """The server's own name of a file is enough; so are number, size and times, and not one of them less."""
    assert verdict(nfs(FILE), nfs(replace(FILE, **change), "10.0.0.2")) is wanted


def test_a_file_that_is_written_to_while_it_is_looked_at() -> None:
    before = replace(FILE, handle="")
    between, after = (replace(before, modified=10 + n, changed=11 + n) for n in (5, 9))
    assert verdict(nfs(before), nfs(between, "10.0.0.2"), nfs(after)) is Verdict.PROBABLE
    assert verdict(nfs(before), nfs(after, "10.0.0.2"), nfs(between)) is Verdict.DIFFERENT


def test_one_server_by_one_address_is_certain() -> None:
    assert verdict(nfs(FILE), nfs(replace(FILE, modified=99, handle=""))) is Verdict.CERTAIN


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (Part(("d", 1)), Part(("d", 2)), False),
        (Part(("d", 1), 0, 10), Part(("d", 1), 10, 20), False),
        (Part(("d", 1), 0, 11), Part(("d", 1), 10, 20), True),
        (Part(("d", 1), 0, 10), Part(("d", 1), whole=False), True),
        (Part(("d", 1), 0, 10, whole=False), Part(("d", 1), whole=False), False),
    ],
)
def test_parts(one: Part, other: Part, wanted: bool) -> None:
    assert one.meets(other) is wanted
    found = verdict(Facts(("a",), (one,)), Facts(("b",), (other,)))
    assert found is (Verdict.CERTAIN if wanted else Verdict.DIFFERENT)


def test_the_disk_of_a_file_system_holds_its_files() -> None:
    file = Facts(("file", 1, 2), holders=(Part(("device", 1), whole=False),))
    disk, other = Facts(("device", 1)), Facts(("device", 2))
    assert (holds(disk, file), holds(other, file), holds(file, disk)) == (True, False, False)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"peer": "10.0.0.2"}, Verdict.UNLESS_CONTENTS_DIFFER),
        ({"peer": "10.0.0.2", "target": "iqn.b", "lun": 9}, Verdict.UNLESS_CONTENTS_DIFFER),
        ({"peer": "", "target": "", "lun": 0}, Verdict.UNLESS_CONTENTS_DIFFER),
        ({"peer": "10.0.0.2", "size": 8192}, Verdict.DIFFERENT),
        ({"peer": "10.0.0.2", "named": Designators(frozenset({"naa.6001405b"}))}, Verdict.DIFFERENT),
        ({"target": "iqn.b", "named": Designators(frozenset({"naa.6001405b"}))}, Verdict.IF_ONE_FILE_IS_BEHIND),
    ],
)
def test_luns_with_names_of_their_own(change: dict[str, object], wanted: Verdict) -> None:
    assert verdict(lun(DISK), lun(replace(DISK, **change))) is wanted


@pytest.mark.parametrize(
    ("named", "change", "wanted"),
    [
        (TGT, {"peer": "10.0.0.2"}, Verdict.UNLESS_CONTENTS_DIFFER),
        (TGT, {"peer": "10.0.0.2", "target": "iqn.b"}, Verdict.DIFFERENT),
        (TGT, {"peer": "10.0.0.2", "named": replace(TGT, serial="beaf12")}, Verdict.DIFFERENT),
        (Designators(), {"peer": "10.0.0.2", "target": "iqn.b"}, Verdict.IF_DATA_IS_THE_SAME),
        (Designators(serial="1"), {"target": "iqn.b"}, Verdict.UNLESS_CONTENTS_DIFFER),
        (Designators(serial="1"), {"peer": "10.0.0.2", "target": "iqn.b"}, Verdict.IF_DATA_IS_THE_SAME),
    ],
)
def test_luns_with_names_that_strangers_have_too(
    named: Designators, change: dict[str, object], wanted: Verdict
) -> None:
    one = replace(DISK, named=named)
    assert verdict(lun(one), lun(replace(one, **change))) is wanted


def test_a_lun_and_a_file_of_this_host() -> None:
    file = Facts(("file", 1, 2), files=(FILE,), size=4000, local=True)
    assert verdict(lun(replace(DISK, here=True)), file) is Verdict.IF_SERVED_HERE
    assert verdict(lun(DISK), file) is Verdict.DIFFERENT
    assert verdict(lun(replace(DISK, here=True, size=8192)), file) is Verdict.DIFFERENT


def test_few_of_many_are_suspect() -> None:
    many = [nfs(File(number, number, number, number)) for number in range(1000)]
    assert suspects([*many, many[500]]) == [(500, 1000)]


def test_files_of_one_disk_are_not_suspect_by_that() -> None:
    """Nor by their size; what holds them all is, and a LUN of that size which this host serves."""
    disk = ("device", 1)
    files = [
        Facts(
            ("file", 1, number),
            holders=(Part(disk, whole=False),),
            files=(File(number, 4096, 1, 1),),
            size=4096,
            local=True,
        )
        for number in range(1000)
    ]
    assert suspects(files) == []
    assert suspects([*files[:3], Facts(disk, local=True)]) == [(0, 3), (1, 3), (2, 3)]
    assert suspects([lun(replace(DISK, here=True)), *files[:2]]) == [(0, 1), (0, 2)]
    assert suspects([files[1], files[0], files[1]]) == [(0, 2)]
