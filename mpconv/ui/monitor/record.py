"""The record of a job that runs: fed lease by lease by its coordinator, and by what its observer hears. Pure.

What comes lease by lease is only noted when it comes, which takes a fraction of a microsecond, and reckoned up when
somebody looks. How many leases are open, and where, is read from the state machine then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mpconv.coordination.observer import Listener
from mpconv.core.events import (
    Action,
    AskFlush,
    Durable,
    Event,
    GiveToken,
    Grant,
    LeaseDone,
    LeaseWanted,
    Leaving,
    LetGo,
    LostContact,
    Passed,
    Restarted,
    SignOfLife,
    StatusFound,
    TokenWanted,
    Undone,
    WorkerDead,
)
from mpconv.core.leases import LeaseState
from mpconv.model.extent import Extent, Kind
from mpconv.model.names import readable
from mpconv.ui.monitor.disk_map import DiskMap
from mpconv.ui.monitor.facts import COMPARE, COPY, READ, Happened, Job
from mpconv.ui.monitor.rows import Rows, rate_of
from mpconv.ui.monitor.timeline import Timeline

if TYPE_CHECKING:
    from mpconv.core.state import CoordinatorState
    from mpconv.protocol.job import Job as CopyJob

_EVENTS = 50
_NOTED = 1024
"""Notes that may wait to be reckoned up: few, so that they are still at hand in the processor then."""
_ROWS = 128
_SAMPLE_SECONDS = 1.0
_DULL = frozenset({LeaseWanted, LeaseDone, SignOfLife, TokenWanted, Grant, GiveToken, AskFlush})
"""Events and actions that come often, and of which nothing is to be told."""
RUNNING = ("waiting", "opening", "running")

Clock = Callable[[], float]


class Record(Listener):
    """Of the job called `name`. `now`: seconds of a clock that never goes back; `wall`: seconds since 1970.

    `source`, `target`: for people, without credentials. `targets`: how many there are. `kind`: as a Job's.
    """

    def __init__(
        self, name: str, *, source: str, target: str, targets: int, now: Clock, wall: Clock, kind: str = COPY
    ) -> None:
        self.name = readable(name)
        self._kind = kind
        self.state = "opening"
        self._source, self._target, self._targets = readable(source), readable(target), targets
        self._now, self._wall = now, wall
        self._began_at, self._begun = now(), wall()
        self._started = False
        self._stage = "open"
        self._why: str | None = None
        self._ended_at: float | None = None
        self._ended_wall: float | None = None
        self._size = self._done = self._done_zero = self._durable = 0
        self._read = self._written = self._zero = self._lost = 0
        self._dropped = self._deaths = self._troubles = self._restarts = 0
        self._digest: str | None = None
        self._verified: str | None = None
        self._verdict: str | None = None
        self._differs = False
        self._map: DiskMap | None = None
        self._only_reads = False
        self._copying: CoordinatorState | None = None
        self._noted: list[tuple[Event, Sequence[Action]]] = []
        self._leases: list[tuple[str, Extent, int]] = []
        self._rows = Rows()
        self._events: deque[Happened] = deque(maxlen=_EVENTS)
        self._timeline = Timeline()
        self._recent: deque[tuple[float, int]] = deque()
        both = f"{source} and {target}" if kind == COMPARE else f"{source} to {target}"
        self._happened("began", both if target else source)

    # --- lease by lease, from the coordinator --------------------------------------------------------------------

    def began(self, job: CopyJob, state: CoordinatorState) -> None:
        self._reckon()
        self._copying = state
        self._only_reads = not job.targets or job.compare
        self._rows.copies = not self._only_reads
        self.state = "running"
        if self._map is None or not self._only_reads:
            self._size = job.size
            self._map = DiskMap(job.size)
            before = [Extent(start, end - start) for start, end in state.before]
            self._map.done(before, durable=True)
            self._durable = sum(extent.length for extent in before)
            if self._kind != READ:
                self._happened("comparing" if job.compare else "copying" if job.targets else "reading", "")
        self._map.none_verified()
        self._rows.part()

    def hello(self, worker: str, where: str) -> None:
        self._rows.hello(worker, where)

    def took(self, event: Event, actions: Sequence[Action]) -> None:
        if type(event) in _DULL:
            for action in actions:
                if type(action) not in _DULL:
                    break
            else:
                return
        self._noted.append((event, actions))
        if len(self._noted) > _NOTED:
            self._reckon()

    def wrote(self, worker: str, extent: Extent, zeros: int) -> None:
        self._leases.append((worker, extent, zeros))
        if len(self._leases) > _NOTED:
            self._reckon()

    def trouble(self, worker: str) -> None:
        self._troubles += 1
        row = self._rows.get(worker)
        if row is not None:
            row.troubles += 1

    # --- what the observer hears ---------------------------------------------------------------------------------

    def progress(self, done: int, total: int, zeros: int) -> None:
        """As Observer's."""
        self._done, self._done_zero, self._size = done, zeros, total

    def phase(self, name: str) -> None:
        """The same."""
        self._stage = name
        if self.state == "opening":
            self.state = "running"
        self._happened(name, "")

    def lost(self, ranges: Sequence[tuple[int, int]], why: str) -> None:
        """The same."""
        self._lost += sum(length for _, length in ranges)
        for start, length in ranges[:_EVENTS]:
            self._happened("lost", f"bytes {start} to {start + length - 1}: {why}")

    def digest(self, text: str) -> None:
        """The same."""
        self._digest = text
        self._happened("digest", text)

    def verified(self, checked: int, size: int) -> None:
        """The same."""
        self._reckon()
        self._verified = f"{checked} of {size} bytes"
        if self._map is not None and checked == size:
            self._map.all_verified()
        self._happened("verified", self._verified)

    def judged(self, text: str, *, differs: bool) -> None:
        """The same."""
        self._verdict, self._differs = text, differs
        self._happened("different" if differs else "equal", text)

    def dropped(self, image: str, why: str) -> None:
        """The same."""
        self._dropped += 1
        self._happened("dropped", f"{image}: {why}")

    def warned(self, text: str) -> None:
        """The same."""
        self._happened("warning", text)

    def waits(self) -> None:
        """Its turn has not come, or not come again."""
        self._reckon()
        self.state = "waiting"
        self._rows.part()
        self._copying = None

    def starts(self) -> None:
        """Its turn has come. It is as old as its first turn."""
        if not self._started:
            self._started = True
            self._began_at, self._begun = self._now(), self._wall()
        self.state, self._stage = "opening", "open"

    def ended(self, why: str | None, *, stopped: bool = False) -> None:
        """It is over. `why`: of what it failed; `stopped`: somebody wanted it to end."""
        if self.state not in RUNNING:
            return
        self._reckon()
        self._sample(force=True)
        self._ended_at, self._ended_wall = self._now(), self._wall()
        if why is None and self._targets and self._dropped >= self._targets:
            why = "no target is left"
        if why is None:
            self.state, self._stage = "finished", "done"
            self._finished()
        else:
            self.state = "stopped" if stopped else "failed"
        self._why = None if why is None else readable(why)
        self._rows.part()
        self._copying = None
        self._happened(self.state, why or "")

    def _finished(self) -> None:
        if self._differs:
            return  # what lies above the first difference was not looked at
        self._done = self._size
        if self._kind == COPY:
            self._durable = self._size
            if self._map is not None:
                self._map.all_durable()
        elif self._map is not None:
            self._map.all_verified()

    def tick(self) -> None:
        """Time has passed: to be called about once a second."""
        if self.state in RUNNING and self.state != "waiting":
            self._reckon()
            self._sample()

    # --- who looks -----------------------------------------------------------------------------------------------

    def facts(self) -> Job:
        """As it stands."""
        self._reckon()
        now = self._now()
        leased, in_doubt, open_leases, doubtful = self._open()
        unborn = self.state == "waiting" and not self._started
        elapsed = 0.0 if unborn else (self._ended_at or now) - self._began_at
        rate = rate_of(self._recent, now) if self.state == "running" else 0.0
        missing = self._size - self._done
        workers = self._rows.facts(open_leases, doubtful, now)
        return Job(
            name=self.name,
            source=self._source,
            target=self._target,
            kind=self._kind,
            state=self.state,
            stage=self._stage,
            why=self._why,
            begun=round(self._begun, 3),
            updated=round(self._ended_wall or self._wall(), 3),
            elapsed=round(elapsed, 3),
            size=self._size,
            done=self._done,
            done_zero=self._done_zero,
            durable=self._durable,
            read=self._read,
            written=self._written,
            zero=self._zero,
            rate=round(rate),
            left=round(missing / rate, 1) if rate > 0 else None,
            lost=self._lost,
            leases=len(leased) + len(in_doubt),
            in_doubt=len(in_doubt),
            troubles=self._troubles,
            restarts=self._restarts,
            deaths=self._deaths,
            targets=self._targets,
            dropped=self._dropped,
            digest=self._digest,
            verified=self._verified,
            verdict=self._verdict,
            differs=self._differs,
            map=self._map.facts(leased, in_doubt) if self._map is not None else None,
            timeline=self._timeline.samples,
            workers=workers,
            workers_known=len(workers),
            events=list(self._events),
        )

    def _open(self) -> tuple[list[Extent], list[Extent], dict[str, int], dict[str, int]]:
        leased: list[Extent] = []
        in_doubt: list[Extent] = []
        by_worker: dict[str, int] = {}
        doubtful: dict[str, int] = {}
        if self._copying is None:
            return leased, in_doubt, by_worker, doubtful
        for lease in self._copying.leases.live.values():
            by_worker[lease.worker] = by_worker.get(lease.worker, 0) + 1
            if lease.state is LeaseState.IN_DOUBT:
                in_doubt.append(lease.extent)
                doubtful[lease.worker] = doubtful.get(lease.worker, 0) + 1
            else:
                leased.append(lease.extent)
        return leased, in_doubt, by_worker, doubtful

    # --- reckoning -----------------------------------------------------------------------------------------------

    def _reckon(self) -> None:
        """Take in what was noted. In whatever order: all of it adds up."""
        disk = self._map
        if disk is None:
            return
        noted, self._noted = self._noted, []
        for event, actions in noted:
            self._took(disk, event, actions)
        leases, self._leases = self._leases, []
        if leases:
            self._wrote(disk, leases)

    def _wrote(self, disk: DiskMap, leases: Sequence[tuple[str, Extent, int]]) -> None:
        rows = self._rows
        data, row, last = Kind.DATA, rows.any, ""
        all_read = all_length = all_zeros = 0
        for worker, extent, zeros in leases:
            if worker != last:
                row, last = rows.get(worker) or rows.any, worker
            length = extent.length
            all_length += length
            if extent.kind is data:
                all_read += length
                row.read += length
            if zeros:
                all_zeros += zeros
                row.zero += zeros
            row.done += length
        self._read += all_read
        self._zero += all_zeros
        if self._only_reads:
            disk.verified(extent for _, extent, _ in leases)
        else:
            self._written += all_length - all_zeros
            disk.wrote(leases)

    def _took(self, disk: DiskMap, event: Event, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Passed(extent):
                    self._zero += extent.length
                    if self._kind != COPY:
                        disk.verified([extent])
                    elif not self._only_reads:
                        disk.done([extent], durable=True)
                        self._durable += extent.length
                case Durable(extents):
                    disk.durable(extents)
                    self._durable += sum(extent.length for extent in extents)
                case Undone(extents):
                    disk.undone(extents)
                case LostContact(worker):
                    self._happened("silent", f"{self._rows.name(worker)} let a lease expire")
                case LetGo(worker):
                    self._rows.stands(worker, "gone")
        match event:
            case StatusFound(extents) if not self._only_reads:
                disk.found(extents)
            case StatusFound(extents) if self._stage != "verify":
                disk.found(extents)
            case WorkerDead(worker):
                self._deaths += 1
                self._rows.stands(worker, "lost")
                self._happened("worker lost", f"{self._rows.name(worker)}: its work is done again by others")
            case Restarted(worker):
                self._restarts += 1
                row = self._rows.get(worker)
                if row is not None:
                    row.restarts += 1
                self._happened("worker anew", f"{self._rows.name(worker)} lost its target and begins anew")
            case Leaving(worker):
                self._rows.stands(worker, "leaving")

    def _sample(self, *, force: bool = False) -> None:
        now = self._now()
        at = now - self._began_at
        last = self._timeline.samples[-1]
        soon = at - last.at < 0.9 * _SAMPLE_SECONDS
        if at <= last.at or (soon and not force):
            return
        if soon:
            self._timeline.take_back()
        self._timeline.add(round(at, 2), self._read, self._written, self._zero)
        self._recent.append((now, self._done))
        self._rows.sample(now)

    def _happened(self, kind: str, text: str) -> None:
        self._events.append(Happened(round(self._wall(), 3), kind, readable(text)))


def shown(job: Job) -> Job:
    """The same with so many workers as a page can show, those at work first."""
    if len(job.workers) <= _ROWS:
        return job
    return replace(job, workers=job.workers[:_ROWS])
