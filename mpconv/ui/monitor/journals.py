"""What a journal tells of its job, in the same form as what is known of a job that runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence

from msgspec import Struct

from mpconv.journal.file import peek, resume_with
from mpconv.journal.records import Happening, Stored
from mpconv.model.errors import Fatal
from mpconv.model.extent import Extent
from mpconv.model.names import readable
from mpconv.ui.monitor.disk_map import DiskMap
from mpconv.ui.monitor.facts import Happened, Job, Map, Sample
from mpconv.ui.monitor.timeline import RECENT

_SHOWN = 50
REPORTED = 5000
"""Of what happened, the last: more nobody reads, and a salvaged disk may have lost a million ranges."""
_SAMPLE_SECONDS = 1.0
_DROPPED = "dropped"
_KILLED = "the command was killed, or its host went down"


class Kept(Struct, frozen=True):
    """A journal at `path`. A fan-out's may not be there yet; `in_use` tells whether a program is at all of that."""

    path: str
    in_use: Callable[[], bool] | None = None


class Journals:
    """Of these, looked at whenever somebody asks. Fatal when one that is no fan-out's cannot be read at first."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._kept = kept
        self._latest: dict[str, Job] = {}
        for one in kept:
            if one.in_use is None:
                self._latest[one.path] = job_of(one.path, _SHOWN)

    def facts(self) -> Sequence[Job]:
        """As they stand; of one that cannot be read any more, as it last was."""
        for one in self._kept:
            with contextlib.suppress(Fatal):
                self._latest[one.path] = job_of(one.path, _SHOWN, in_use=one.in_use is not None and one.in_use())
        return list(self._latest.values())


def job_of(path: str, most: int = REPORTED, *, in_use: bool = False) -> Job:
    """What the journal at `path` tells, with `most` events at most. Fatal when it cannot be read, or no copy began.
    `in_use`: a program is at it, though it may not have it open just now.
    """
    stored, used = peek(path)
    used |= in_use
    if stored is None:
        raise Fatal(f"no copy that the journal '{path}' tells of ever began: run the command that named it again")
    return facts_of(path, stored, used, most)


def facts_of(path: str, stored: Stored, used: bool, most: int) -> Job:
    """The same of what stands in it. `used`: a program is at it."""
    state, size, done = stored.word(used), stored.begun.size, stored.bytes_done
    timeline = timeline_of(stored)
    elapsed = timeline[-1].at if timeline else 0.0
    rate = _rate(timeline) if state == "running" else 0.0
    texts = {one.kind: one.text for one in stored.happened}
    dropped = sum(one.kind.endswith(_DROPPED) for one in stored.happened)
    return Job(
        name=readable(path),
        source=stored.begun.source,
        target=stored.begun.target,
        state=state,
        why=_KILLED if state == "killed" else (texts.get(state) or None if state in {"failed", "stopped"} else None),
        begun=round(stored.created, 3),
        updated=round(stored.updated, 3),
        elapsed=round(elapsed, 3),
        size=size,
        done=done,
        done_zero=stored.zeros,
        durable=done,
        zero=stored.zeros,
        rate=round(rate),
        left=round((size - done) / rate, 1) if rate > 0 else None,
        lost=sum(one.length or 0 for one in stored.happened if one.kind == "lost"),
        targets=_targets(stored),
        dropped=dropped,
        digest=texts.get("digest"),
        verified=texts.get("verified"),
        go_on=None if state in {"running", "finished"} else readable(resume_with(path)),
        from_journal=True,
        map=map_of(stored, verified=texts.get("verified") == f"{size} of {size} bytes"),
        timeline=timeline,
        events=[_event(one) for one in stored.happened[-most:]],
    )


def map_of(stored: Stored, *, verified: bool) -> Map:
    """The map of what is durable."""
    disk = DiskMap(stored.begun.size)
    disk.done([Extent(start, end - start) for start, end in stored.done], durable=True)
    disk.all_kinds(stored.kinds.decode("ascii"))
    if verified:
        disk.all_verified()
    return disk.facts()


def timeline_of(stored: Stored) -> list[Sample]:
    """What became durable over the time that somebody was at it: the time between two runs is left out."""
    if not stored.progress:
        return []
    taken_up = [one.at for one in stored.happened if one.kind == "resumed"]
    last_at, last_done, last_zeros = stored.progress[0]
    at, written, zero = 0.0, 0, 0
    found = [Sample(0.0, 0, 0, 0)]
    for when, done, zeros in stored.progress[1:]:
        resumed = max((one for one in taken_up if last_at < one <= when), default=last_at)
        at += max(0.0, when - resumed)
        new_zeros = max(0, zeros - last_zeros)
        written += max(0, done - last_done - new_zeros)
        zero += new_zeros
        if len(found) > 1 and found[-1].at - found[-2].at < _SAMPLE_SECONDS:
            found.pop()
        found.append(Sample(round(at, 2), 0, written, zero))
        last_at, last_done, last_zeros = when, done, zeros
    if len(found) > 2 and found[-1].at - found[-2].at < _SAMPLE_SECONDS:
        del found[-2]
    return found


def _rate(timeline: Sequence[Sample]) -> float:
    """Bytes that became durable per second, over the last ten seconds of it."""
    if not timeline:
        return 0.0
    last = timeline[-1]
    first = next(one for one in timeline if one.at >= last.at - RECENT)
    seconds = last.at - first.at
    return (last.written + last.zero - first.written - first.zero) / seconds if seconds > 0 else 0.0


def _targets(stored: Stored) -> int:
    """How many there are: a deployment's course names each."""
    try:
        course = json.loads(stored.begun.course)
    except ValueError:
        return 1
    aims = course.get("aims") if isinstance(course, dict) else None
    return max(1, len(aims)) if isinstance(aims, list) else 1


def _event(one: Happening) -> Happened:
    where = "" if one.start is None or one.length is None else f"bytes {one.start} to {one.start + one.length - 1}"
    return Happened(round(one.at, 3), one.kind, ": ".join(filter(None, (where, one.text))))
