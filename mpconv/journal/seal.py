"""A sum over all rows that decide what is written, kept with each commit, so that damage and edits are found.

It is no proof against who computes it anew: who may write a journal is ownership.py's. The sum does not depend on the
order of the rows, so a commit costs what its own rows cost, however many there are: a row that comes is added, one
that goes is taken off, by triggers of this connection alone.
"""

from __future__ import annotations

import hashlib
import sqlite3

SEALED = {
    "job": "created, updated, pid, state, source, target, size, zeros, written, places, course",
    "identities": "number, role, name, same, content",
    "done": "start, end",
    "entries": "number, packed",
    "digests": "region, sum",
    "happened": "at, kind, text, start, length",
}
"""Their columns, in order. What else there is only shows how it went."""
TABLE = "CREATE TABLE seal (sum BLOB NOT NULL);"
_WIDTH = 16
_MODULUS = 1 << 8 * _WIDTH


class Seal:
    """Of a database that this connection alone writes. `value`: what the rows add up to now."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.value = stored(database)

    def watch(self) -> None:
        """From here on it follows each row."""
        database = self._database
        database.create_function("mpconv_sealed", -1, self._changed)
        database.execute("PRAGMA recursive_triggers = ON")  # what REPLACE takes away counts too
        for table, columns in SEALED.items():
            names = columns.split(", ")
            for event, sign, row in (("INSERT", 1, "NEW"), ("DELETE", -1, "OLD"), ("UPDATE", 0, "")):
                if row:
                    told = [f"{sign}, '{table}', " + ", ".join(f"{row}.{name}" for name in names)]
                else:
                    told = [
                        f"{sign}, '{table}', " + ", ".join(f"{row}.{name}" for name in names)
                        for sign, row in ((-1, "OLD"), (1, "NEW"))
                    ]
                calls = " ".join(f"SELECT mpconv_sealed({one});" for one in told)
                name = f"sealed_{table}_{event.lower()}"
                database.execute(f"CREATE TEMP TRIGGER {name} AFTER {event} ON main.{table} BEGIN {calls} END")

    def keep(self) -> None:
        """With the transaction that is under way."""
        self._database.execute("DELETE FROM seal")
        self._database.execute("INSERT INTO seal VALUES (?)", (self.value.to_bytes(_WIDTH, "little"),))

    def _changed(self, sign: int, table: str, *row: object) -> None:
        self.value = (self.value + sign * _sum(table, row)) % _MODULUS


def stored(database: sqlite3.Connection) -> int:
    """As it was kept; of a journal that nothing was written into yet, 0."""
    rows = database.execute("SELECT sum FROM seal").fetchall()
    if not rows:
        return 0
    [(value,)] = rows
    if not isinstance(value, bytes) or len(value) != _WIDTH:
        raise ValueError("its checksum is none")
    return int.from_bytes(value, "little")


def check(database: sqlite3.Connection) -> None:
    """ValueError when the rows are not those that were written."""
    if summed(database) != stored(database):
        raise ValueError("its checksum is wrong, so somebody changed it")


def summed(database: sqlite3.Connection) -> int:
    """What all rows add up to."""
    value = 0
    for table, columns in SEALED.items():
        for row in database.execute(f"SELECT {columns} FROM {table}"):
            value += _sum(table, row)
    return value % _MODULUS


def _sum(table: str, row: tuple[object, ...]) -> int:
    digest = hashlib.blake2b(table.encode(), digest_size=_WIDTH)
    for value in row:
        kept = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        digest.update(f"{type(value).__name__} {len(kept)} ".encode())
        digest.update(kept)
    return int.from_bytes(digest.digest(), "little")
