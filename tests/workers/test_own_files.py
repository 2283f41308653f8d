"""A coordinator on another host has a worker open no file that the worker's own host does not allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpconv.model.errors import Denied
from mpconv.model.place import Place
from mpconv.protocol.job import Job
from mpconv.workers.own_files import ANY, permitted


def job(source: Place, target: Place) -> Job:
    return Job(
        id=1,
        sources=[source],
        targets=[target],
        size=512,
        in_order=True,
        sparse_size=0,
        zero_initialised=False,
        requests=1,
        durable=True,
    )


REMOTE = Place(url="nfs://h/e/f")


@pytest.fixture
def shared(tmp_path) -> Path:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.raw").write_bytes(b"a" * 512)
    (tmp_path / "outside").write_bytes(b"o" * 512)
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "shared"


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
def test_without_the_option_there_are_none(shared, form):
    mine = Place(url=form.format(shared / "a.raw"))
    for wanted in (
        job(mine, REMOTE),
        job(REMOTE, mine),
        job(Place(url="nfs://h/e/f", backing=mine), REMOTE),
        job(Place(url="nfs://h/e/f", backing=Place(url="iscsi://h/t/1", data_file=mine)), REMOTE),
    ):
        with pytest.raises(Denied, match="open no files: start them with --shared-files"):
            permitted(wanted, None)
    assert permitted(job(REMOTE, Place(url="null:")), None) == job(REMOTE, Place(url="null:"))


def test_with_it_all_are(shared):
    wanted = job(Place(url=str(shared / "a.raw")), Place(url="/dev/sda"))
    assert permitted(wanted, [ANY]) == wanted


def test_in_a_directory_alone(shared):
    where = [os.path.realpath(shared)]
    allowed = permitted(job(Place(url=f"file:{shared}/a.raw"), REMOTE), where)
    assert allowed.sources[0].beneath == where[0]
    for other in (shared.parent / "outside", shared / ".." / "outside", shared / "link", "/etc/passwd"):
        with pytest.raises(Denied, match="in none of the directories"):
            permitted(job(Place(url=str(other)), REMOTE), where)


def test_what_the_coordinator_says_of_a_directory_counts_for_nothing(shared):
    place = Place(url=str(shared / "a.raw"), beneath="/")
    assert permitted(job(place, REMOTE), [os.path.realpath(shared)]).sources[0].beneath == os.path.realpath(shared)
