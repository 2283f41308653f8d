"""The worker processes of one job: who was started, who said hello, who has fallen silent, who replaces the dead."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from mpconv.model.errors import WorkerLost

SILENT_SECONDS = 30.0
"""Seconds without a word from a worker, which sends a heartbeat every two. Also what it may take to start."""
_UNKILLABLE = 30.0
"""Seconds that a killed process may take to end; one that waits in the kernel for a disk takes for ever."""
_PAUSE = 5.0
"""Seconds between two looks, due every second, after which it was the coordinator that did not run."""
_FEWEST_REPLACEMENTS = 3
_REPLACEMENTS_EACH = 2
"""Workers started in a job, for each it began with, in place of ones that died; whatever kills more kills them all."""


class Member(Struct):
    """A process. `heard`: when, in seconds of the caller's clock. `name` and `number`, its place among the workers from
    0: once it has said hello. `killed`: when it was, since it had fallen silent.
    """

    pid: int
    heard: float
    name: str | None = None
    number: int = 0
    killed: float | None = None


class ProcessRoster:
    """All of a job's processes that are not known to have ended. `count`: how many there are to be."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.replacements = self._replacements = max(_FEWEST_REPLACEMENTS, _REPLACEMENTS_EACH * count)
        self._members: dict[int, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._gone: set[str] = set()
        self._excused: set[int] = set()
        self._looked: float | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def started(self, pid: int, now: float) -> None:
        """A process was started."""
        self._members[pid] = Member(pid, now)

    def hello(self, name: str, pid: int, now: float) -> Member | None:
        """A process says who it is, or says so again; None: nobody waits for such a one."""
        member = self._members.get(pid)
        if member is None or member.name not in (None, name) or self._by_name.get(name) not in (None, member):
            return None
        if member.name is None:
            member.name = name
            member.number = min(set(range(self.count)) - {other.number for other in self._by_name.values()})
            self._by_name[name] = member
        member.heard = now
        return member

    def heard(self, name: str, now: float) -> bool:
        """A word from a worker. False: it is not one, or not any more."""
        member = self._by_name.get(name)
        if member is not None:
            member.heard = now
        return member is not None

    def knew(self, name: str) -> bool:
        """Whether it is a worker, or was one that has ended."""
        return name in self._by_name or name in self._gone

    def ended(self, pid: int) -> str | None:
        """The process is reaped; its name, if it had told one."""
        member = self._members.pop(pid, None)
        if member is None or member.name is None:
            return None
        del self._by_name[member.name]
        self._gone.add(member.name)
        return member.name

    @property
    def replaced(self) -> bool:
        """Whether a worker takes, or took, the place of one that died."""
        return self.replacements < self._replacements

    def turn_away(self, name: str) -> None:
        """There is no work for this one: it ends, and nobody takes its place."""
        member = self._by_name.pop(name)
        del self._members[member.pid]
        self._gone.add(name)
        self._excused.add(member.pid)
        self.count -= 1

    def excused(self, pid: int) -> bool:
        """Whether that process was turned away."""
        return pid in self._excused

    def silent(self, now: float) -> list[int]:
        """Processes to kill: nothing was heard of them for too long. WorkerLost when one does not even end of that.

        When nobody has looked for a while, nobody listened either: then all of them count as heard just now.
        """
        paused = self._looked is not None and now - self._looked > _PAUSE
        self._looked = now
        to_kill: list[int] = []
        for member in self._members.values():
            if paused:
                member.heard = now
            if member.killed is not None:
                if not paused and now - member.killed > _UNKILLABLE:
                    told = f"a worker process (pid {member.pid}) does not end, though it was killed"
                    raise WorkerLost(f"{told}: it waits in the kernel, for a disk or a mounted server: see dmesg")
            elif now - member.heard > SILENT_SECONDS:
                member.killed = now
                to_kill.append(member.pid)
        return to_kill

    def doubted(self, name: str, now: float) -> int | None:
        """The pid to kill of a worker that let a lease or a flush expire; None: it is killed already, or gone."""
        member = self._by_name.get(name)
        if member is None or member.killed is not None:
            return None
        member.killed = now
        return member.pid
