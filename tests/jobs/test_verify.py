"""A target that changed behind the copy's back is found out; what a sample looks at."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.coordination.observer import Observer
from mpconv.core.digests import Sums
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy.convert import convert
from mpconv.jobs.verify import joined, sample, unequal
from mpconv.model.digest import BLOCK, REGION, packed, regions
from mpconv.model.errors import Fatal
from mpconv.model.place import Place
from mpconv.options.copy import Options
from mpconv.workers.launch.local import LocalWorkers
from tests.conftest import make_image

KiB, MiB = 1 << 10, 1 << 20
SIZE = 20 * MiB + 512


class Saboteur(Observer):
    """Does something to the target when all of it is written, and hears how the reading back went."""

    def __init__(self, sabotage: Callable[[], None]) -> None:
        self.sabotage = sabotage
        self.phases: list[str] = []
        self.seen: list[tuple[str, int]] = []
        self.checked: tuple[int, int] | None = None

    def phase(self, name: str) -> None:
        self.phases.append(name)
        if name == "verify":
            self.sabotage()

    def progress(self, done: int, total: int, zeros: int) -> None:
        self.seen.append((self.phases[-1] if self.phases else "copy", done))

    def verified(self, checked: int, size: int) -> None:
        self.checked = (checked, size)


def copied(source: str, target: str, observer: Observer, **options: object) -> None:
    chosen = Options(**{"verify": 1.0, "workers": 2, **options})
    with LocalWorkers([]) as workers:
        asyncio.run(convert([Place(url=source)], Place(url=target), chosen, JobContext(workers, observer)))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Data, but for 2 MiB of zeros from 8 MiB on."""
    path = tmp_path / "a.raw"
    content = bytearray(random.Random(1).randbytes(SIZE))
    content[8 * MiB : 10 * MiB] = bytes(2 * MiB)
    path.write_bytes(content)
    return path


def test_a_target_that_is_as_it_should_be(tmp_path, source):
    heard = Saboteur(lambda: None)
    copied(str(source), str(tmp_path / "b.raw"), heard)
    assert heard.phases == ["flush", "verify"]
    assert heard.checked == (SIZE, SIZE)
    verifying = [done for phase, done in heard.seen if phase == "verify"]
    assert verifying[0] == 0 and verifying[-1] == SIZE and verifying == sorted(verifying)


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ([0], "bytes 0 to 2097151 in"),
        ([SIZE - 1], "bytes 20971520 to 20972031 in"),
        ([9 * MiB], "bytes 8388608 to 10485759 in"),
        ([3 * MiB, 5 * MiB, 5 * MiB + 1, 7 * MiB], "bytes 2097152 to 8388607 in"),
        ([0, 5 * MiB, 13 * MiB], "bytes 0 to 2097151, 4194304 to 6291455, 12582912 to 14680063 in"),
    ],
    ids=["the first byte", "the last byte", "among zeros", "neighbours", "apart"],
)
def test_bytes_that_changed_are_named(tmp_path, source, places, named):
    target = tmp_path / "b.raw"

    def sabotage() -> None:
        for at in places:
            flip(target, at)

    with pytest.raises(Fatal) as caught:
        copied(str(source), str(target), Saboteur(sabotage))
    assert str(caught.value) == f"the target is not equal to the source: {named} '{target}': do not use it, copy again"
    assert caught.value.exit_code == 1


def test_a_hole_where_data_was_is_found(tmp_path, source):
    target = tmp_path / "b.raw"

    def sabotage() -> None:
        content = target.read_bytes()
        target.write_bytes(content[: 12 * MiB])
        with target.open("r+b") as file:
            file.truncate(SIZE)

    with pytest.raises(Fatal, match="bytes 12582912 to 20972031 in"):
        copied(str(source), str(target), Saboteur(sabotage))


def test_a_target_that_became_shorter_is_found(tmp_path, source):
    target = tmp_path / "b.raw"
    words = r"b.raw' has only 1048576 of 20972032 bytes when read back: do not use it, copy again "
    words += r"\(everything is written, but it is not verified\)"
    with pytest.raises(Fatal, match=words):
        copied(str(source), str(target), Saboteur(lambda: target.open("r+b").truncate(MiB)))


@pytest.mark.parametrize(("qcow2", "in_order"), [(Qcow2Options(), True), (Qcow2Options(cluster_size=4096), False)])
def test_in_a_qcow2_image(tmp_path, source, qcow2, in_order):
    target = tmp_path / "b.qcow2"
    options = {"target_format": "qcow2", "qcow2": qcow2, "in_order": in_order}
    copied(str(source), str(target), Saboteur(lambda: None), **options)
    needle = source.read_bytes()[15 * MiB : 15 * MiB + 64]

    def sabotage() -> None:
        flip(target, target.read_bytes().index(needle) + 7)

    with pytest.raises(Fatal, match="bytes 14680064 to 16777215 in"):
        copied(str(source), str(target), Saboteur(sabotage), **options)


def test_behind_nfs_and_behind_iscsi(source, nfs, lun):
    behind = lun(SIZE, old_data=True)
    for url, path in ((nfs.url("verified.raw"), nfs.path("verified.raw")), (behind.url, behind.backing)):
        heard = Saboteur(lambda: None)
        copied(str(source), url, heard)
        assert heard.checked == (SIZE, SIZE)

        def sabotage(path: Path = path) -> None:
            flip(path, 6 * MiB + 5)

        with pytest.raises(Fatal, match="bytes 6291456 to 8388607 in"):
            copied(str(source), url, Saboteur(sabotage))


def test_a_sample_finds_what_changed_everywhere_and_says_how_much_it_read(tmp_path, source):
    target = tmp_path / "b.raw"
    heard = Saboteur(lambda: None)
    copied(str(source), str(target), heard, verify=0.2)
    assert heard.checked is not None
    checked, size = heard.checked
    assert size == SIZE and 3 * MiB < checked <= 4 * REGION

    def sabotage() -> None:
        target.write_bytes(bytes(byte ^ 1 for byte in target.read_bytes()))

    with pytest.raises(Fatal, match="not equal to the source: bytes "):
        copied(str(source), str(target), Saboteur(sabotage), verify=0.01)


def test_more_ranges_than_one_wants_to_read_are_counted(tmp_path):
    source, target = tmp_path / "a.raw", tmp_path / "b.raw"
    with source.open("wb") as file:
        for region in range(40):
            file.seek(region * REGION)
            file.write(b"\1" * BLOCK)

    def sabotage() -> None:
        for region in range(0, 40, 2):
            flip(target, region * REGION + 5)

    with pytest.raises(Fatal) as caught:
        copied(str(source), str(target), Saboteur(sabotage))
    words = str(caught.value)
    assert words.count(" to ") == 16 + 1 and f"62914560 to 65011711 and 4 more ranges in '{target}': " in words


def sums_of(with_data: set[int]) -> Sums:
    sums = Sums()
    for region in with_data:
        sums.add(region * REGION, packed(region * REGION, 1, {region: region + 1}))
    return sums


@given(
    count=st.integers(0, 300),
    data=st.sets(st.integers(0, 299)),
    share=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 100),
)
def test_a_sample_is_never_empty_and_prefers_data(count, data, share, seed):
    data = {region for region in data if region < count}
    chosen = sample(sums_of(data), count * REGION, share, random.Random(seed))
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(count))
    with_data = len(data.intersection(chosen))
    assert bool(chosen) is bool(count)
    assert share * len(data) <= with_data <= share * len(data) + 1
    assert len(chosen) - with_data <= min(share * (count - len(data)) + 1, max(64, with_data))
    if share == 1:
        assert data <= set(chosen)


def test_a_sample_may_have_any_region():
    data = {0, 1, 5, 9}
    seen = {region for seed in range(400) for region in sample(sums_of(data), 10 * REGION, 0.2, random.Random(seed))}
    assert seen == set(range(10))


@given(
    first=st.dictionaries(st.integers(0, 200), st.integers(1, 3)),
    second=st.dictionaries(st.integers(0, 200), st.integers(1, 3)),
    tail=st.integers(1, REGION),
)
def test_regions_that_differ_become_ranges(first, second, tail):
    size = 200 * REGION + tail
    made = []
    for drawn in (first, second):
        sums = Sums()
        for region, value in drawn.items():
            sums.add(region * REGION, packed(region * REGION, 1, {region: value}))
        made.append(sums)
    different = [region for region in range(201) if first.get(region, 0) != second.get(region, 0)]
    assert unequal(*made) == different
    assert unequal(*made, range(0, 201, 3)) == [region for region in different if region % 3 == 0]
    ranges = joined(different, size)
    assert [region for start, end in ranges for region in regions(start, end - start)] == different
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert all(end <= size for _, end in ranges)


def test_a_target_that_could_not_be_read_back_is_refused_before_it_is_written(tmp_path):
    """Its backing file may not be opened."""
    make_image(tmp_path / "a.raw", MiB)
    make_image(tmp_path / "base.raw", MiB, seed=2)
    target = tmp_path / "b.qcow2"
    options = {"target_format": "qcow2", "qcow2": Qcow2Options(backing_file="base.raw", backing_fmt="raw")}
    copied(str(tmp_path / "a.raw"), str(target), Observer(), verify=None, **options)
    before = target.read_bytes()
    with pytest.raises(Fatal, match="--allow-backing"):
        copied(str(tmp_path / "a.raw"), str(target), Observer(), target_format="qcow2", create=False)
    assert target.read_bytes() == before


@pytest.mark.parametrize("there_before", [False, True])
def test_a_target_that_is_not_equal_goes_if_it_was_made_for_the_copy(tmp_path, source, there_before):
    target = tmp_path / "b.raw"
    if there_before:
        target.touch()
    heard = Saboteur(lambda: flip(target, 0))
    with pytest.raises(Fatal):
        copied(str(source), str(target), heard)
    assert target.exists() == there_before
