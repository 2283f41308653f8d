"""The journal of a fan-out: a directory with the plan, as it was resolved, and a journal for each job that began."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import time
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from mpconv.jobs.copy import manifest as courses
from mpconv.jobs.fanout.plan import of_name, of_numbers
from mpconv.jobs.fanout.spec import Fanout, Spec
from mpconv.journal.faults import told
from mpconv.journal.file import PLAN, is_locked, lock, peek
from mpconv.journal.records import State, Stored
from mpconv.model.errors import Fatal
from mpconv.model.names import unusable

_LOCK = "lock"
_KIND, _VERSION = "mpconv-fanout", 2
_ANEW = "remove it, and begin anew with mpconv fanout"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the plan's file, without passwords. `begun`: seconds since 1970. `seal`: a sum of the plan."""

    kind: str
    version: int
    begun: float
    plan: Fanout
    seal: str


class JournalDirectory:
    """A directory that is ours until it is closed. `passwords`: URLs with theirs, by those without."""

    def __init__(self, path: str, fd: int, plan: Fanout, passwords: Mapping[str, str]) -> None:
        self.path = path
        self.plan = plan
        self.passwords = passwords
        self._fd = fd

    @classmethod
    def begin(cls, path: str, plan: Fanout) -> JournalDirectory:
        """For a fan-out that begins; the directory is made, or is one whose fan-out is over. Fatal otherwise."""
        with told(path, "making"), contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            _sync(os.path.dirname(os.path.abspath(path)))
        if not os.path.exists(os.path.join(path, PLAN)):
            _empty(path)
        fd = _taken(path)
        try:
            _empty(path)
            jobs = [_kept(spec) for spec in plan.jobs]
            whole = replace(plan, jobs=jobs)
            kept = Kept(kind=_KIND, version=_VERSION, begun=time.time(), plan=whole, seal=sealed(whole))
            with told(path, "writing"):
                _write(os.path.join(path, PLAN), json.dumps(msgspec.to_builtins(kept)))
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, plan, courses.passwords_of(place for spec in plan.jobs for place in spec.places))

    @classmethod
    def take_up(cls, path: str) -> JournalDirectory:
        """One that is there. Fatal when it is no fan-out's, or somebody is at it."""
        read(path)  # before a lock is made in a directory of something else
        fd = _taken(path)
        try:
            return cls(path, fd, read(path).plan, MappingProxyType({}))
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def journal_of(self, name: str) -> str:
        """Where that job's journal is."""
        return journal_of(self.path, name)

    def stored(self, name: str) -> Stored | None:
        """How far that job is; None: it never began. Fatal when the journal there is another job's."""
        found = stored(self.path, name)
        if found is not None:
            course = courses.decoded(found, self.journal_of(name))
            spec = next(spec for spec in self.plan.jobs if spec.name == name)
            if course.target.url != courses.kept(spec.target).url:
                raise Fatal(f"the journal '{self.journal_of(name)}' is of another copy: {_ANEW}")
        return found


def is_ledger(path: str) -> bool:
    """Whether it is a fan-out's journal, or was meant to be one."""
    return os.path.isdir(path)


def is_used(path: str) -> bool:
    """Whether a program is at it."""
    try:
        fd = os.open(os.path.join(path, _LOCK), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def resume_with(path: str) -> str:
    """The command that goes on with it."""
    return f"mpconv resume {shlex.quote(path)}"


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO has nothing in it then."""
    return os.open(path, flags | os.O_NONBLOCK)


def read(path: str) -> Kept:
    """What was to be done. Fatal when it is no fan-out's journal, or one of another version."""
    with told(path, "reading", _ANEW):
        try:
            with open(os.path.join(path, PLAN), encoding="utf-8", opener=_without_waiting) as file:
                found = json.load(file)
        except FileNotFoundError:
            raise _no_journal(path) from None
        except RecursionError:
            raise ValueError("lists lie too deep in one another") from None
        if not isinstance(found, dict) or found.get("kind") != _KIND:
            raise _no_journal(path)
        if found.get("version") != _VERSION:
            why = f"this mpconv knows version {_VERSION} only: use the one that made it, or {_ANEW}"
            raise Fatal(f"the journal '{path}' is of version {found.get('version')}, and {why}")
        kept = msgspec.convert(found, Kept)
        _check(kept.plan)
        if sealed(kept.plan) != kept.seal:
            raise ValueError("its checksum is wrong, so somebody changed it")
        return kept


def _check(plan: Fanout) -> None:
    """ValueError for what no plan of ours has: names would lead to other files, and what is no name opens nothing."""
    seen: set[str] = set()
    for spec in plan.jobs:
        why = of_name(spec.name, seen)
        found = [why, *(unusable(place.url) for place in spec.places)]
        found += of_numbers({"weight": spec.weight, "retries": spec.retries})
        for text in found:
            if text is not None:
                raise ValueError(text)


def sealed(plan: Fanout) -> str:
    """The sum of a plan, by which edits and damage are found."""
    text = json.dumps(msgspec.to_builtins(plan), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _no_journal(path: str) -> Fatal:
    return Fatal(f"the directory '{path}' is no journal of mpconv fanout: name the one that --journal named")


def journal_of(path: str, name: str) -> str:
    """Where the journal of a job is."""
    return os.path.join(path, f"{name}.journal")


def stored(path: str, name: str) -> Stored | None:
    """How far a job is; None: it never began."""
    return standing(path, name, whole=True)[0]


def standing(path: str, name: str, *, whole: bool = False) -> tuple[Stored | None, bool]:
    """The same, and whether it runs. `whole`: as peek's."""
    where = journal_of(path, name)
    try:
        if not os.path.getsize(where):
            return None, False
    except FileNotFoundError:
        return None, False
    return peek(where, whole=whole)


def _kept(spec: Spec) -> Spec:
    sources = [courses.kept(place) for place in spec.sources]
    options = courses.without_secrets(spec.options)
    return replace(spec, sources=sources, target=courses.kept(spec.target), options=options)


def _empty(path: str) -> None:
    """Of a fan-out that is over nothing stays. Fatal when it is not over, or something else lies there."""
    with told(path, "reading", _ANEW):
        names = [name for name in os.listdir(path) if name != _LOCK]
    if not names:
        return
    if PLAN not in names and any(not name.startswith(PLAN) for name in names):
        why = "is not empty, and no journal of mpconv fanout: name another one, or one that is not there yet"
        raise Fatal(f"the directory '{path}' {why}")
    ours = [PLAN]
    if PLAN in names:
        for spec in read(path).plan.jobs:
            ours.append(os.path.basename(journal_of(path, spec.name)))
            found = stored(path, spec.name)
            if found is None or found.state is not State.FINISHED:
                why = f"go on with it: {resume_with(path)}; or remove it, and all is done anew"
                raise Fatal(f"the journal '{path}' has an unfinished fan-out: {why}")
    with told(path, "writing"):
        for name in [name for name in names if name.startswith(tuple(ours))]:
            os.unlink(os.path.join(path, name))


def _taken(path: str) -> int:
    """The open file whose lock is the directory's."""
    with told(path, "opening"):
        fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not lock(fd):
        os.close(fd)
        raise Fatal(f"the journal '{path}' is in use by another mpconv: let that one end, or stop it, and begin again")
    return fd


def _write(name: str, text: str) -> None:
    """Whole and durable, or not at all."""
    unfinished = f"{name}.new"
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(unfinished, name)
    _sync(os.path.dirname(name))


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
