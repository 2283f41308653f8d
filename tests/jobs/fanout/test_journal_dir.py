"""The journal of a fan-out: what it keeps, and who may have it."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator

import pytest

from mpconv.jobs.fanout.journal_dir import JournalDirectory, is_used, journal_of, read, stored
from mpconv.jobs.fanout.spec import Fanout, Limits, Spec
from mpconv.journal.file import Journal, resume_with
from mpconv.journal.records import Begun, Checkpoint, State
from mpconv.model.errors import Fatal, MpconvError
from mpconv.model.place import Place
from mpconv.options.copy import Options

SECRET = "not-for-others1"


def plan(*names: str) -> Fanout:
    jobs = [
        Spec(
            name=name,
            sources=[Place(url=f"iscsi://user%{SECRET}@10.0.0.1/iqn.x:y/{number}")],
            target=Place(url=f"/srv/{name}"),
            options=Options(),
        )
        for number, name in enumerate(names)
    ]
    return Fanout(jobs=jobs, limits=Limits(jobs=3, servers={"nas": 7}))


def finish(path: str, name: str, state: State = State.FINISHED) -> None:
    with contextlib.closing(Journal.for_new_copy(journal_of(path, name))) as journal:
        journal.begin(Begun(source="a", target="b", size=10, course="{}", identities=[]))
        journal.commit(Checkpoint(ranges=[(0, 10)], zeros=0, written=10, state=state))


def test_a_plan_is_kept_without_passwords_and_comes_back(tmp_path):
    path = str(tmp_path / "journal")
    ledger = JournalDirectory.begin(path, plan("a", "b"))
    assert is_used(path)
    with pytest.raises(Fatal, match="in use by another mpconv"):
        JournalDirectory.take_up(path)
    ledger.close()
    assert not is_used(path)
    again = JournalDirectory.take_up(path)
    assert [spec.name for spec in again.plan.jobs] == ["a", "b"]
    assert again.plan.limits == Limits(jobs=3, servers={"nas": 7})
    assert again.plan.jobs[1].sources[0].url == "iscsi://user@10.0.0.1/iqn.x:y/1"
    again.close()
    assert SECRET in ledger.passwords["iscsi://user@10.0.0.1/iqn.x:y/0"]
    for file in (tmp_path / "journal").iterdir():
        assert SECRET.encode() not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_only_one_that_is_over_is_begun_anew(tmp_path):
    path = str(tmp_path / "journal")
    JournalDirectory.begin(path, plan("a", "b")).close()
    finish(path, "a")
    with pytest.raises(Fatal, match=r"has an unfinished fan-out: go on with it: mpconv resume .*; or remove it"):
        JournalDirectory.begin(path, plan("c"))
    finish(path, "b", State.FAILED)
    with pytest.raises(Fatal, match=r"has an unfinished fan-out: go on with it: mpconv resume .*; or remove it"):
        JournalDirectory.begin(path, plan("c"))
    (tmp_path / "journal" / "b.journal").unlink()
    finish(path, "b")
    found = stored(path, "b")
    assert found is not None and found.bytes_done == 10
    assert resume_with(journal_of(path, "b")) == f"mpconv resume {path}"
    (tmp_path / "journal" / "mine").write_text("precious")
    JournalDirectory.begin(path, plan("c")).close()
    assert (tmp_path / "journal" / "mine").read_text() == "precious"
    assert stored(path, "a") is None
    assert [spec.name for spec in read(path).plan.jobs] == ["c"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "is no journal of mpconv fanout"),
        ('{"kind": "mpconv-fanout", "version": 99}', "is of version 99"),
        ('{"kind": "mpconv-fanout", "version": 1}', "is of version 1"),
        ('{"kind": "mpconv-fanout", "version": 2}', "it is damaged"),
        ("{", "it is damaged"),
        (json.dumps([1]), "is no journal of mpconv fanout"),
        ("\0\xff", "it is damaged"),
    ],
)
def test_what_is_none_is_refused_in_a_line(tmp_path, content, why):
    (tmp_path / "plan.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(Fatal, match=why):
        JournalDirectory.take_up(str(tmp_path))


def test_a_directory_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(Fatal, match="is not empty, and no journal"):
        JournalDirectory.begin(str(tmp_path), plan("a"))
    assert (tmp_path / "mine").read_text() == "precious"


WRONG = (None, True, -1, 1 << 70, 10**400, float("nan"), "", "a\0b", "\ud800", [], [1], {}, {"a": 1}, "../../x")


def places_in(value: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*above, key)
            yield from places_in(inner, (*above, key))


@pytest.mark.parametrize("wrong", [*WRONG, ...], ids=ascii)
def test_a_plan_that_somebody_changed_is_read_or_refused_in_a_line(tmp_path, wrong):
    """Each value of it once as something else, or (...) taken away; none that is read leads to another directory."""
    path = tmp_path / "journal"
    JournalDirectory.begin(str(path), plan("a", "b")).close()
    good = (path / "plan.json").read_text()
    for where in places_in(json.loads(good)):
        changed = json.loads(good)
        at = changed
        for key in where[:-1]:
            at = at[key]
        if wrong is ...:
            del at[where[-1]]
        else:
            at[where[-1]] = wrong
        (path / "plan.json").write_text(json.dumps(changed))
        try:
            found = read(str(path)).plan
            assert all(stored(str(path), spec.name) is None for spec in found.jobs)
        except MpconvError as error:
            assert "\n" not in str(error)
            continue
        assert all("/" not in spec.name for spec in found.jobs)


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000, "\0", ""], ids=["deep", "digits", "nul", "empty"])
def test_a_plan_that_is_no_json_of_ours(tmp_path, content):
    path = tmp_path / "journal"
    JournalDirectory.begin(str(path), plan("a")).close()
    (path / "plan.json").write_text(content)
    with pytest.raises(Fatal, match="journal"):
        read(str(path))
