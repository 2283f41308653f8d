"""The journal's file: what is committed comes back, whoever was killed; what is no journal is refused in one line."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpconv.journal.file import Journal, peek
from mpconv.journal.records import Begun, Checkpoint, Happening, Identity, State
from mpconv.model.errors import Fatal
from mpconv.model.ranges import Ranges

MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40


def begun(size: int = GiB) -> Begun:
    known = Identity("source", "a\udcff.raw", {"its inode": "7"}, {"its size": "5"})
    return Begun(source="a\udcff.raw", target="b.raw", size=size, course="{}", identities=[known])


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "j.db")


def test_what_is_committed_comes_back(path):
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    first = [(0, MiB), (3 * MiB, 4 * MiB)]
    digests = {0: b"\1" * 16, 1: b"\2" * 16}
    journal.commit(Checkpoint(ranges=first, zeros=5, written=7, entries={3: b"x" * 100}, digests=digests))
    happened = [Happening(1.5, "lost", "why\udcff", 512, 1024), Happening(2.5, "warning", "w")]
    journal.commit(
        Checkpoint(
            ranges=[(0, 4 * MiB)],
            zeros=6,
            written=8,
            entries={3: b"y"},
            places=77,
            digests={1: b"\3" * 16},
            happened=happened,
        )
    )
    journal.close()
    again = Journal.of_copy(path)
    stored = again.load()
    assert stored is not None
    assert (list(stored.done), stored.bytes_done) == ([(0, 4 * MiB)], 4 * MiB)
    assert (stored.zeros, stored.written, stored.places) == (6, 8, 77)
    assert again.entries() == {3: b"y"}
    assert again.digests() == {0: b"\1" * 16, 1: b"\3" * 16}
    assert (stored.state, stored.pid) == (State.RUNNING, os.getpid())
    assert stored.begun.identities[0].same == {"its inode": "7"}
    assert [(one.kind, one.start, one.length) for one in stored.happened] == [
        ("began", None, None),
        ("lost", 512, 1024),
        ("warning", None, None),
    ]
    again.close()


def test_only_its_owner_may_read_it(path):
    old = os.umask(0)
    try:
        journal = Journal.for_new_copy(path)
        journal.begin(begun())
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in os.scandir(os.path.dirname(path))}
    finally:
        os.umask(old)
    journal.close()
    assert set(modes.values()) == {0o600} and len(modes) > 1
    assert os.listdir(os.path.dirname(path)) == ["j.db"]


def test_a_copy_that_never_began_leaves_nothing(path):
    Journal.for_new_copy(path).close()
    assert not os.path.exists(path)


def test_unfinished_work_is_not_overwritten_and_finished_is(path):
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    journal.commit(Checkpoint(ranges=[(0, MiB)], zeros=0, written=0, state=State.FAILED))
    journal.close()
    with pytest.raises(Fatal, match=r"has an unfinished copy: go on with it: mpconv resume .*j\.db; or remove it"):
        Journal.for_new_copy(path)
    journal = Journal.of_copy(path)
    journal.commit(Checkpoint(ranges=[], zeros=0, written=0, state=State.FINISHED))
    journal.close()
    journal = Journal.for_new_copy(path)
    assert journal.load() is None, "what happens to the new copy must not look like the old one's end"
    journal.begin(begun(2 * GiB))
    stored = journal.load()
    assert stored is not None
    assert (stored.begun.size, stored.bytes_done) == (2 * GiB, 0)
    journal.close()


def test_one_program_at_a_time(path):
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    for opening in (Journal.of_copy, Journal.for_new_copy):
        with pytest.raises(Fatal, match=rf"in use by another mpconv \(pid {os.getpid()}\)"):
            opening(path)
    assert peek(path)[1] is True
    journal.commit(Checkpoint(ranges=[(0, 1)], zeros=0, written=0))  # who was refused did not take our locks along
    journal.close()
    assert peek(path)[1] is False


def test_a_killed_program_s_journal_is_free_and_has_its_last_commit(path):
    program = f"""
import os, signal
from mpconv.journal.file import Journal
from mpconv.journal.records import Begun, Checkpoint
journal = Journal.for_new_copy({path!r})
journal.begin(Begun(source="a", target="b", size=100, course="", identities=[]))
journal.commit(Checkpoint(ranges=[(0, 50)], zeros=0, written=50))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    stored, used = peek(path)
    assert stored is not None and not used
    assert list(stored.done) == [(0, 50)]


def foreign(path: str, what: str) -> None:
    if what == "a database":
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE job (state TEXT)")
        other.close()
        return
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    journal.commit(Checkpoint(ranges=[(n * 10, n * 10 + 5) for n in range(2000)], zeros=0, written=0))
    journal.close()
    content = bytearray(Path(path).read_bytes())
    if what == "newer":
        content[60:64] = (3).to_bytes(4, "big")
    elif what == "cut off":
        del content[len(content) // 2 :]
    elif what == "damaged":
        content[4096:] = os.urandom(len(content) - 4096)
    elif what == "short":
        del content[50:]
    elif what == "text":
        content = bytearray(b"not a journal\n" * 100)
    Path(path).write_bytes(content)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a database", "is not a journal of mpconv, but another program's database"),
        ("newer", "is of version 3, and this mpconv knows version 2 only"),
        ("cut off", "database disk image is malformed"),
        ("damaged", "database disk image is malformed"),
        ("short", "is not a journal of mpconv"),
        ("text", "is not a journal of mpconv"),
    ],
)
def test_what_is_no_journal_is_refused_and_stays_as_it_is(path, what, words):
    foreign(path, what)
    before = Path(path).read_bytes()
    for opening in (peek, Journal.for_new_copy, lambda path: Journal.of_copy(path).load()):
        with pytest.raises(Fatal, match=words) as told:
            opening(path)
        assert "\n" not in str(told.value)
    assert Path(path).read_bytes() == before


def test_a_journal_that_is_not_there(path):
    for opening in (peek, Journal.of_copy):
        with pytest.raises(Fatal, match=r"opening the journal '.*j\.db': No such file or directory"):
            opening(path)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=60), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_ranges_are_kept_as_few_as_they_are(tmp_path_factory, extents, together):
    """By the rows that a checkpoint names, whatever joins what."""
    path = str(tmp_path_factory.mktemp("ranges") / "j.db")
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    done = Ranges()
    for first in range(0, len(extents), together):
        some = extents[first : first + together]
        for start, length in some:
            done.add(start, start + length)
        journal.commit(
            Checkpoint(ranges=list(dict.fromkeys(done.around(start) for start, _ in some)), zeros=0, written=0)
        )
    stored = journal.load()
    journal.close()
    assert stored is not None
    assert list(stored.done) == list(done)
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM done").fetchone()[0] == len(done)
    database.close()


def test_eight_tebibytes_in_order_are_kilobytes(path):
    journal = Journal.for_new_copy(path)
    journal.begin(begun(8 * TiB))
    done = Ranges()
    step = 8 * TiB // 200
    for at in range(0, 8 * TiB, step):
        done.add(at, at + step)
        journal.commit(Checkpoint(ranges=[done.around(at)], zeros=0, written=0))
    journal.close()
    assert os.path.getsize(path) < 64 * 1024


def test_how_much_was_durable_by_when_is_kept_and_stays_short(path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("mpconv.journal.file.time.time", lambda: now[0])
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    commits = 1500
    for number in range(1, commits + 1):
        now[0] += 2
        journal.commit(Checkpoint(ranges=[], zeros=number, written=0, durable=2 * number, kinds=b"d" * (number % 7)))
    stored = journal.load()
    journal.close()
    assert stored is not None and stored.kinds == b"d" * (commits % 7)
    found = stored.progress
    assert found[0] == (1000.0, 0, 0) and found[-1] == (now[0], 2 * commits, commits)
    assert 256 < len(found) <= 1024 and found == sorted(found)
    assert all(durable == 2 * zeros == at - 1000 for at, durable, zeros in found)
    assert found[-1][0] - found[-2][0] == 2, "what is new is told in detail"


def test_commits_that_follow_at_once_are_one_step_of_progress(path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("mpconv.journal.file.time.time", lambda: now[0])
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    for later, durable in ((2, 10), (0.1, 20), (0.1, 30), (2, 40), (0.1, 50)):
        now[0] += later
        journal.commit(Checkpoint(ranges=[], zeros=0, written=0, durable=durable))
    stored = journal.load()
    journal.close()
    assert stored is not None
    assert [durable for _, durable, _ in stored.progress] == [0, 10, 40, 50]


CHANGES = [
    "UPDATE done SET end = end + 4096",
    "UPDATE done SET start = 512",
    "INSERT INTO done VALUES (33554432, 67108864)",
    "DELETE FROM done",
    "UPDATE digests SET sum = zeroblob(16)",
    "UPDATE entries SET number = number + 1",
    "UPDATE job SET state = 'finished'",
    "UPDATE job SET zeros = zeros + 1",
    "UPDATE job SET course = course || ' '",
    "INSERT INTO job SELECT * FROM job",
    "UPDATE identities SET content = '{}'",
    "DELETE FROM happened",
    "DELETE FROM seal",
    "UPDATE seal SET sum = 'x'",
    "DROP TABLE seal",
    "DROP TABLE map",
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changed_is_not_gone_on_with(path, change):
    journal = Journal.for_new_copy(path)
    journal.begin(begun())
    for number in range(3):
        rows = {number: b"entries", 7: bytes([number])}
        ranges = [(0, (number + 1) * MiB)]
        journal.commit(Checkpoint(ranges=ranges, zeros=0, written=MiB, digests=rows, entries=rows))
    journal.begin_anew()
    journal.commit(Checkpoint(ranges=[(0, MiB)], zeros=0, written=MiB, digests={1: b"sum"}, entries={1: b"part"}))
    journal.close()
    Journal.of_copy(path).close()
    assert peek(path, whole=True)[0] is not None
    database = sqlite3.connect(path)
    database.executescript(change)
    database.close()
    with pytest.raises(Fatal, match="journal"):
        peek(path, whole=True)
    with pytest.raises(Fatal, match="journal"), contextlib.closing(Journal.of_copy(path)) as again:
        again.load()


@pytest.mark.parametrize("command", ["resume", "status", "report --json"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_fifo_in_the_place_of_a_journal_keeps_nobody_waiting(tmp_path: Path, command: str, inside: bool):
    place = tmp_path / "journal"
    if inside:
        place.mkdir()
    os.mkfifo(place / "plan.json" if inside else place)
    words = [sys.executable, "-m", "mpconv", *command.split(), place]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert str(place) in line
