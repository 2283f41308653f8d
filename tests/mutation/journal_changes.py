"""Changes of journals: of rows, of the tables, of the file, and of a fan-out's plan."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from mpconv.jobs.fanout import journal_dir
from mpconv.journal import seal

NUMBERS = (-1, 0, 1, 511, 4096, 65536, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
SHIFTS = (-65536, -512, -1, 1, 512, 4096, 65536, 1 << 20)
_SCHEMA = (
    "DROP TABLE {table}",
    "ALTER TABLE {table} RENAME TO other",
    "ALTER TABLE {table} ADD COLUMN more INTEGER",
    "ALTER TABLE {table} RENAME COLUMN {column} TO other",
    "DELETE FROM {table}",
    "PRAGMA user_version = 1",
    "PRAGMA user_version = 7",
    "PRAGMA application_id = 7",
    "CREATE TRIGGER own AFTER INSERT ON {table} BEGIN DELETE FROM done; END",
)


def change(chance: random.Random, journal: Path, others: list[Path]) -> str:
    """One change of a journal. `others`: journals of other copies."""
    plan = journal.parent / "plan.json"
    kind = chance.choice(
        ["row"] * 7 + ["course"] * 3 + ["schema", "file", "file", "foreign"] + ["plan"] * plan.exists()
    )
    if kind == "plan":
        found = json.loads(plan.read_text())
        told = _in_json(chance, found)
        plan.write_text(json.dumps(found))
        return f"plan: {told}"
    if kind == "foreign":
        other = chance.choice(others)
        end = chance.choice(["", "-wal"])
        if Path(f"{other}{end}").exists():
            shutil.copy(f"{other}{end}", f"{journal}{end}")
        return f"foreign {other.name}{end}"
    if kind == "file":
        return _in_file(chance, journal)
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as database:
        try:
            return _in_database(chance, kind, database)
        except (sqlite3.Error, LookupError, TypeError, ValueError) as error:  # an earlier change left nothing to change
            return f"nothing ({error})"


def seal_again(journal: Path) -> str:
    """As who knows how would: what the change made of the journal, and of a plan beside it, is what its sum is of."""
    told = [] if not (journal.parent / "plan.json").exists() else [_seal_plan(journal.parent / "plan.json")]
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as database:
        try:
            resealed = seal.Seal(database)
            resealed.value = seal.summed(database)
            resealed.keep()
        except (sqlite3.Error, ValueError) as error:
            return f"not sealed again ({error})"
    return ", ".join(["sealed again", *told])


def _seal_plan(path: Path) -> str:
    found = json.loads(path.read_text())
    try:
        found["seal"] = journal_dir.sealed(msgspec.convert(found, journal_dir.Kept).plan)
    except (msgspec.ValidationError, KeyError, ValueError) as error:
        return f"the plan not ({error})"
    path.write_text(json.dumps(found))
    return "the plan too"


def _in_database(chance: random.Random, kind: str, database: sqlite3.Connection) -> str:
    tables = sorted(name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
    table = chance.choice([*tables, *(["done"] * 4 if "done" in tables else [])])
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    column = chance.choice(columns)
    if kind == "schema":
        statement = chance.choice(_SCHEMA).format(table=table, column=column)
        database.execute(statement)
        return statement
    if kind == "course":
        course = json.loads(database.execute("SELECT course FROM job").fetchone()[0])
        told = _in_json(chance, course)
        database.execute("UPDATE job SET course = ?", (json.dumps(course),))
        return f"course: {told}"
    rows = database.execute(f"SELECT rowid, * FROM {table}").fetchall()
    what = chance.choice(["set", "set", "set", "shift", "shift", "delete", "double"])
    row = chance.choice(rows) if rows else None
    if row is None or what == "double":
        values = list(row[1:]) if row else [chance.choice(NUMBERS) for _ in columns]
        values[0] = values[0] if chance.random() < 0.5 else chance.choice(NUMBERS)
        database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", values)
        return f"{table}: one more, {str(values)[:100]}"
    if what == "delete":
        database.execute(f"DELETE FROM {table} WHERE rowid = ?", row[:1])
        return f"{table}: one less"
    old = row[1 + columns.index(column)]
    value: Any = _value(chance, old)
    if what == "shift" and isinstance(old, int):
        value = old + chance.choice(SHIFTS)
    database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row[0]))
    return f"{table}.{column}: {str(old)[:60]} -> {str(value)[:60]}"


def _value(chance: random.Random, old: object) -> object:
    return chance.choice([None, "", "x", "[]", "{}", b"\0", 1.5, float("inf"), f"{old}x", *NUMBERS])


def _in_json(chance: random.Random, whole: Any) -> str:
    """Of all fields at all depths, one."""
    found: list[tuple[Any, Any, str]] = []

    def walk(node: Any, path: str) -> None:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            found.append((node, key, f"{path}/{key}"))
            if isinstance(value, (dict, list)):
                walk(value, f"{path}/{key}")

    walk(whole, "")
    node, key, path = chance.choice(found)
    what = chance.choice(["set", "set", "delete", "extra", "swap"])
    if what == "delete":
        del node[key]
    elif what == "extra" and isinstance(node, dict):
        node[f"{key}x"] = node[key]
    elif what == "swap" and isinstance(node[key], str):
        node[key] = chance.choice(["bystander.raw", "source.raw", "nfs://127.0.0.1/x", "qcow2", "raw", "/", "\0", ""])
    else:
        node[key] = chance.choice([None, True, [], {}, [1], "x", 1.5, *NUMBERS])
    return f"{what} {path}"


def _in_file(chance: random.Random, journal: Path) -> str:
    wal = Path(f"{journal}-wal")
    path = wal if wal.exists() and chance.random() < 0.4 else journal
    content = bytearray(path.read_bytes())
    what = chance.choice(["cut", "bits", "bits", "page", "gone", "wal"])
    if what == "cut" and content:
        del content[chance.randrange(len(content)) :]
    elif what == "bits" and content:
        for _ in range(chance.choice([1, 1, 8, 200])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif what == "page" and len(content) > 4096:
        at = chance.randrange(len(content) // 4096) * 4096
        content[at : at + 4096] = chance.randbytes(4096)
    elif what == "gone" and path == wal:
        path.unlink()
        return "without its WAL"
    else:
        path, content = wal, bytearray(chance.randbytes(8192))
    path.write_bytes(content)
    return f"{what} in {path.name}"
