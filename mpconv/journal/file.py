"""The journal's file: an SQLite database in WAL mode, so that it can be read while it is written.

Every commit is synced (synchronous=FULL): what it says is on the disk when `commit` returns, and a crash leaves the one
before or the one after. One program at a time has a journal, by a lock on a byte far behind the file's end: it belongs
to the open file, so it goes when the process does, however that ends, and it leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import sqlite3
import stat
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence

from mpconv.journal import rows, seal
from mpconv.journal.faults import told
from mpconv.journal.records import Begun, Checkpoint, Happening, State, Stored
from mpconv.model.errors import Fatal
from mpconv.model.names import readable

VERSION = 2
"""1 had no seal: what damage had made of it could not be told from what was done."""
APPLICATION = 0x6D70636A
"""SQLite's application id: "mpcj"."""
PLAN = "plan.json"
"""A journal that lies beside such a file is one of a fan-out's."""
_MAGIC = b"SQLite format 3\0"
_VERSION_AT, _APPLICATION_AT, _HEADER = 60, 68, 100
_LOCKED_BYTE = 1 << 62
_FLOCK = "hhqqi4x"
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE job (
    created REAL, updated REAL, pid INTEGER, state TEXT, source TEXT, target TEXT,
    size INTEGER, zeros INTEGER, written INTEGER, places INTEGER, course TEXT);
CREATE TABLE identities (number INTEGER PRIMARY KEY, role TEXT, name TEXT, same TEXT, content TEXT);
CREATE TABLE done (start INTEGER PRIMARY KEY, end INTEGER NOT NULL);
CREATE TABLE entries (number INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE digests (region INTEGER PRIMARY KEY, sum BLOB NOT NULL);
CREATE TABLE happened (at REAL, kind TEXT, text TEXT, start INTEGER, length INTEGER);
CREATE TABLE progress (at REAL, durable INTEGER, zeros INTEGER);
CREATE TABLE map (kinds BLOB);
{seal.TABLE}
COMMIT;
"""
_TABLES = (*seal.SEALED, "progress", "map")
_MOST_PROGRESS = 1024
_PROGRESS_SECONDS = 1.0
"""Several workers flush at about the same time; between two such commits there is no rate to tell."""
_THINNED = """
DELETE FROM progress WHERE rowid IN (
    SELECT rowid FROM (SELECT rowid, row_number() OVER (ORDER BY rowid) AS number FROM progress)
    WHERE number % 2 = 0 AND rowid < (SELECT max(rowid) FROM progress) - 256)
"""


class Journal:
    """An open journal, ours until it is closed. Calls block, from any thread. Raises Fatal."""

    def __init__(self, path: str, fd: int, database: sqlite3.Connection) -> None:
        self.path = path
        self._fd = fd
        self._database = database
        self._unused = False
        self._at_it = threading.Lock()
        self._seal: seal.Seal | None = None

    @classmethod
    def for_new_copy(cls, path: str) -> Journal:
        """Made, or one whose copy is over taken again. Refused when it has work that is not finished."""
        with told(path, "opening"):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                os.fchmod(fd, 0o600)  # whatever the umask takes away; what SQLite makes beside it gets the same
            except FileExistsError:
                fd = _opened(path, os.O_RDWR)
        journal = cls._taken(path, fd, fresh=os.fstat(fd).st_size == 0)
        try:
            stored = journal.load()
            if stored is not None and stored.state is not State.FINISHED:
                why = f"go on with it: {resume_with(path)}; or remove it, and all is copied anew"
                raise Fatal(f"the journal '{path}' has an unfinished copy: {why}")
            if stored is not None:
                with journal._transaction() as database:
                    _empty(database)
            journal._unused = True
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def of_copy(cls, path: str) -> Journal:
        """One that is there."""
        with told(path, "opening"):
            fd = _opened(path, os.O_RDWR)
        return cls._taken(path, fd, fresh=False)

    @classmethod
    def _taken(cls, path: str, fd: int, *, fresh: bool) -> Journal:
        try:
            if not lock(fd):
                why = "let that one end, or stop it, and begin again"
                raise Fatal(f"the journal '{path}' is in use by another mpconv{_user(path)}: {why}")
            if not fresh:
                _check(path, fd)
            with told(path, "opening"):
                database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except BaseException:
            os.close(fd)
            raise
        journal = cls(path, fd, database)
        journal._unused = fresh
        try:
            with told(path, "writing" if fresh else "reading"):
                if fresh:
                    database.execute("PRAGMA synchronous = OFF")
                    database.executescript(_SCHEMA)
                database.execute("PRAGMA journal_mode = WAL")
                database.execute(f"PRAGMA synchronous = {'OFF' if fresh else 'FULL'}")
                database.execute("PRAGMA trusted_schema = OFF")
                if not fresh:
                    seal.check(database)
                journal._seal = seal.Seal(database)
                journal._seal.watch()
        except BaseException:
            journal.close()
            raise
        return journal

    def begin(self, begun: Begun) -> None:
        """A copy begins: of what was there nothing stays. From here on everything is synced."""
        with self._at_it, told(self.path, "writing"):
            os.fsync(self._fd)
            self._database.execute("PRAGMA synchronous = FULL")
        now = time.time()
        names = (readable(begun.source), readable(begun.target))
        job = (now, now, os.getpid(), State.RUNNING.value, *names, begun.size, 0, 0, 0)
        with self._transaction() as database:
            _empty(database)
            database.execute(f"INSERT INTO job VALUES ({'?, ' * 10}?)", (*job, begun.course))
            for identity in begun.identities:
                facts = (json.dumps(identity.same), json.dumps(identity.content))
                database.execute(
                    "INSERT INTO identities (role, name, same, content) VALUES (?, ?, ?, ?)",
                    (identity.role, readable(identity.name), *facts),
                )
            database.execute("INSERT INTO happened VALUES (?, 'began', '', NULL, NULL)", (now,))
            database.execute("INSERT INTO progress VALUES (?, 0, 0)", (now,))
        self._unused = False
        with told(self.path, "writing"):
            _sync_directory(self.path)

    def begin_anew(self, course: str | None = None, happened: Sequence[Happening] = ()) -> None:
        """Nothing counts as done any more; places that were given out stay so. `course`: None: as before."""
        with self._transaction() as database:
            database.execute("DELETE FROM done")
            database.execute("DELETE FROM entries")
            database.execute("DELETE FROM digests")
            database.execute("DELETE FROM map")
            database.execute("UPDATE job SET course = coalesce(?, course), zeros = 0, written = 0", (course,))
            _note(database, happened)

    def take_up(self) -> None:
        """This process goes on with the copy."""
        now = time.time()
        with self._transaction() as database:
            running = (State.RUNNING.value, os.getpid(), now)
            database.execute("UPDATE job SET state = ?, pid = ?, updated = ?", running)
            database.execute("INSERT INTO happened VALUES (?, 'resumed', '', NULL, NULL)", (now,))

    def commit(self, checkpoint: Checkpoint) -> None:
        """It is on the disk when this returns."""
        packed = [(number, zlib.compress(entries, 1)) for number, entries in checkpoint.entries.items()]
        with self._transaction() as database:
            database.executemany("DELETE FROM done WHERE start BETWEEN ? AND ?", checkpoint.ranges)
            database.executemany("INSERT INTO done VALUES (?, ?)", checkpoint.ranges)
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", packed)
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", checkpoint.digests.items())
            _note(database, checkpoint.happened)
            _note_progress(database, checkpoint)
            database.execute(
                "UPDATE job SET updated = ?, zeros = ?, written = ?,"
                " places = coalesce(?, places), state = coalesce(?, state)",
                (
                    time.time(),
                    checkpoint.zeros,
                    checkpoint.written,
                    checkpoint.places,
                    checkpoint.state.value if checkpoint.state else None,
                ),
            )

    def load(self) -> Stored | None:
        """What stands in it; None: no copy began."""
        with told(self.path, "reading"):
            return _load(self._database)

    def entries(self) -> dict[int, bytes]:
        """As they were committed, by number."""
        with told(self.path, "reading"):
            return rows.entries(self._database.execute("SELECT number, packed FROM entries").fetchall())

    def digests(self) -> dict[int, bytes]:
        """The sums of what is done, by region."""
        with told(self.path, "reading"):
            return rows.digests(self._database.execute("SELECT region, sum FROM digests").fetchall())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._at_it, told(self.path, "writing"):
            assert self._seal is not None
            self._database.execute("BEGIN IMMEDIATE")
            before = self._seal.value
            try:
                yield self._database
                self._seal.keep()
                self._database.execute("COMMIT")
            except BaseException:
                self._seal.value = before
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Let go of it. One for a new copy that never began is removed."""
        if self._fd < 0:
            return
        with self._at_it, contextlib.suppress(sqlite3.Error):
            self._database.close()
        if self._unused:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1


def peek(path: str, *, whole: bool = False) -> tuple[Stored | None, bool]:
    """What stands in a journal, without taking it, and whether a program is at it. `whole`: Fatal too when it is not
    what was written; who only shows it, again and again, does without.
    """
    with told(path, "opening"):
        fd = _opened(path, os.O_RDONLY)
        try:
            _check(path, fd)
            used = is_locked(fd)
        finally:
            os.close(fd)
        database = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)
    with contextlib.closing(database), told(path, "reading"):
        if whole:
            database.execute("BEGIN")  # it is checked as it is read
            seal.check(database)
            stored = _load(database, begin=False)
            database.execute("COMMIT")
            return stored, used
        return _load(database), used


def _opened(path: str, flags: int) -> int:
    """Of a file that is there; a FIFO would keep whoever opens it waiting."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Fatal(f"'{path}' is no journal of mpconv: it is not a file")
    return fd


def resume_with(path: str) -> str:
    """The command that goes on with a copy, or with all of those that it was begun with."""
    beside = os.path.dirname(path)
    if beside and os.path.exists(os.path.join(beside, PLAN)):
        path = beside
    return f"mpconv resume {shlex.quote(path)}"


def _empty(database: sqlite3.Connection) -> None:
    for table in _TABLES:
        database.execute(f"DELETE FROM {table}")


def _note(database: sqlite3.Connection, happened: Sequence[Happening]) -> None:
    new = [(one.at, one.kind, readable(one.text), one.start, one.length) for one in happened]
    database.executemany("INSERT INTO happened VALUES (?, ?, ?, ?, ?)", new)


def _note_progress(database: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    """For who looks at it later: how much, by when; and what lies where."""
    if checkpoint.durable is not None:
        row = (time.time(), checkpoint.durable, checkpoint.zeros)
        last = database.execute("SELECT rowid, at FROM progress ORDER BY rowid DESC LIMIT 2").fetchall()
        if len(last) == 2 and last[0][1] - last[1][1] < _PROGRESS_SECONDS:
            database.execute("DELETE FROM progress WHERE rowid = ?", last[0][:1])
        database.execute("INSERT INTO progress VALUES (?, ?, ?)", row)
        if database.execute("SELECT count(*) FROM progress").fetchone()[0] > _MOST_PROGRESS:
            database.execute(_THINNED)
    if checkpoint.kinds is not None:
        database.execute("DELETE FROM map")
        database.execute("INSERT INTO map VALUES (?)", (zlib.compress(checkpoint.kinds, 1),))


def _sync_directory(path: str) -> None:
    """The names of new files are on the disk too."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _load(database: sqlite3.Connection, *, begin: bool = True) -> Stored | None:
    if begin:
        database.execute("BEGIN")
    try:
        jobs = database.execute(
            "SELECT created, updated, pid, state, zeros, written, places, source, target, size, course FROM job"
        ).fetchall()
        done = database.execute("SELECT start, end FROM done ORDER BY start").fetchall()
        identities = database.execute("SELECT role, name, same, content FROM identities ORDER BY number").fetchall()
        happened = database.execute("SELECT at, kind, text, start, length FROM happened ORDER BY rowid").fetchall()
        kinds = database.execute("SELECT kinds FROM map").fetchone()
        progress = database.execute("SELECT at, durable, zeros FROM progress ORDER BY rowid").fetchall()
    finally:
        if begin:
            database.execute("COMMIT")
    if not jobs:
        return None
    return rows.stored(jobs, done, identities, happened, kinds, progress)


def _check(path: str, fd: int) -> None:
    """Fatal unless it is a journal, and one that we know."""
    header = os.pread(fd, _HEADER, 0)
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise Fatal(f"'{path}' is not a journal of mpconv: name the file that --journal named")
    if struct.unpack_from(">I", header, _APPLICATION_AT)[0] != APPLICATION:
        why = "another program's database: name the file that --journal named"
        raise Fatal(f"'{path}' is not a journal of mpconv, but {why}")
    version = struct.unpack_from(">I", header, _VERSION_AT)[0]
    if version != VERSION:
        why = f"this mpconv knows version {VERSION} only: use the one that made it, or remove it and begin anew"
        raise Fatal(f"the journal '{path}' is of version {version}, and {why}")


def lock(fd: int) -> bool:
    """Take an open file until it is closed. False: another open file has it. A file system without such locks is used
    without them.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, _LOCKED_BYTE, 1, 0))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_locked(fd: int) -> bool:
    """Whether another open file has it."""
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, _LOCKED_BYTE, 1, 0))
    except OSError:
        return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _user(path: str) -> str:
    try:
        stored, _ = peek(path)
    except Fatal:
        return ""
    return f" (pid {stored.pid})" if stored is not None else ""


def _quoted(path: str) -> str:
    """As SQLite's URIs want it."""
    return os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
