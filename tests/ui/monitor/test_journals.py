"""What a journal tells of its job."""

from __future__ import annotations

import pytest

from mpconv.journal.file import Journal
from mpconv.journal.records import Begun, Checkpoint, Happening, State, Stored
from mpconv.model.errors import Fatal
from mpconv.model.ranges import Ranges
from mpconv.ui.monitor.journals import Journals, Kept, facts_of, job_of, timeline_of

MiB = 1 << 20
SIZE = 8 * MiB


def stored(
    *, done: tuple[tuple[int, int], ...] = (), state: State = State.RUNNING, happened: tuple[Happening, ...] = (),
    progress: tuple[tuple[float, int, int], ...] = (), kinds: bytes = b"", course: str = "{}",
) -> Stored:  # fmt: skip
    ranges = Ranges()
    for start, end in done:
        ranges.add(start, end)
    return Stored(
        begun=Begun(source="a", target="b", size=SIZE, course=course, identities=[]), state=state, pid=1, created=100.0,
        updated=110.0, done=ranges, zeros=0, written=0, places=0, happened=list(happened), kinds=kinds,
        progress=list(progress),
    )  # fmt: skip


def test_the_map_has_what_is_durable_and_what_lies_there():
    job = facts_of(
        "j", stored(done=((0, MiB), (2 * MiB, 2 * MiB + 4096)), kinds=b"d" * 128 + b"." * 872 + b"z" * 24), True, 9
    )
    assert job.map is not None and job.map.bin == 8192
    assert job.map.marks == "s" * 128 + "." * 128 + "p" + "." * 767
    assert job.map.kinds == "d" * 128 + "." * 872 + "z" * 24
    assert (job.state, job.done, job.durable, job.go_on) == ("running", MiB + 4096, MiB + 4096, None)


def test_a_copy_that_nobody_is_at_was_killed_and_can_go_on():
    job = facts_of("a b", stored(), False, 9)
    assert job.state == "killed" and job.go_on == "mpconv resume 'a b'"
    assert job.why == "the command was killed, or its host went down"


def test_of_what_it_failed_what_was_lost_and_who_was_dropped():
    happened = (
        Happening(1.0, "lost", "bad", 512, 1024), Happening(2.0, "lost", "bad", 4096, 512),
        Happening(3.0, "target 2 dropped", "no space"), Happening(4.0, "digest", "xxh3-64k:1"),
        Happening(5.0, "failed", "all is over"),
    )  # fmt: skip
    found = stored(state=State.FAILED, happened=happened, course='{"aims": [1, 2, 3]}')
    job = facts_of("j", found, False, 2)
    assert (job.state, job.why, job.lost, job.dropped, job.targets) == ("failed", "all is over", 1536, 1, 3)
    assert job.digest == "xxh3-64k:1"
    assert [one.kind for one in job.events] == ["digest", "failed"], "only the last ones were asked for"
    assert facts_of("j", found, False, 9).events[0].text == "bytes 512 to 1535: bad"


@pytest.mark.parametrize("course", ["", "[]", '{"aims": 7}', '{"aims": null}', '{"aims": []}'])
def test_a_course_that_tells_of_no_targets_has_one(course):
    assert facts_of("j", stored(course=course), used=False, most=10).targets == 1


@pytest.mark.parametrize(("checked", "marks"), [(SIZE, {"v"}), (SIZE // 2, {"s"})])
def test_only_what_was_read_back_as_a_whole_counts_as_verified(checked, marks):
    happened = (Happening(3.0, "verified", f"{checked} of {SIZE} bytes"), Happening(4.0, "finished", ""))
    job = facts_of("j", stored(done=((0, SIZE),), state=State.FINISHED, happened=happened), False, 9)
    assert set(job.map.marks) == marks and job.verified == f"{checked} of {SIZE} bytes"


def test_the_time_between_two_runs_is_left_out_and_nothing_falls():
    progress = ((100.0, 0, 0), (102.0, 10, 4), (104.0, 20, 4), (5002.0, 30, 4), (5004.0, 5, 0), (5006.0, 25, 5))
    found = timeline_of(stored(progress=progress, happened=(Happening(5000.0, "resumed", ""),)))
    assert [(one.at, one.written, one.zero) for one in found] == [
        (0.0, 0, 0), (2.0, 6, 4), (4.0, 16, 4), (6.0, 26, 4), (8.0, 26, 4), (10.0, 41, 9),
    ]  # fmt: skip


def test_samples_too_close_to_tell_a_rate_are_one():
    progress = ((100.0, 0, 0), (102.0, 10, 0), (102.5, 20, 0), (102.75, 30, 0), (106.0, 40, 0))
    found = timeline_of(stored(progress=progress))
    assert [(one.at, one.written) for one in found] == [(0.0, 0), (2.0, 10), (6.0, 40)]
    last = timeline_of(stored(progress=(*progress, (106.5, 90, 0))))
    assert [(one.at, one.written) for one in last] == [(0.0, 0), (2.0, 10), (6.5, 90)]


def test_a_journal_that_goes_away_shows_as_it_last_was(tmp_path):
    path = str(tmp_path / "j")
    journal = Journal.for_new_copy(path)
    journal.begin(Begun(source="a", target="b", size=SIZE, course="{}", identities=[]))
    watched = Journals([Kept(path)])
    journal.commit(Checkpoint(ranges=[(0, MiB)], zeros=0, written=MiB))
    assert [job.done for job in watched.facts()] == [MiB]
    journal.close()
    (tmp_path / "j").unlink()
    assert [job.done for job in watched.facts()] == [MiB]
    with pytest.raises(Fatal, match="No such file"):
        Journals([Kept(path)])


def test_a_journal_of_no_copy_is_refused(tmp_path):
    path = str(tmp_path / "j")
    journal = Journal.for_new_copy(path)
    journal._unused = False
    journal.close()
    with pytest.raises(Fatal, match="ever began"):
        job_of(path)
