"""What `mpconv status` prints of a journal."""

from __future__ import annotations

import time

from mpconv.journal.records import Happening, Stored

_SHOWN = 10
"""Of what happened, the last; all of it with --output=json."""


def state_of(stored: Stored, used: bool) -> str:
    """In a word, as Stored's."""
    return stored.word(used)


def facts(stored: Stored, used: bool) -> dict[str, object]:
    """For programs: bytes, and seconds since 1970."""
    return {
        "state": state_of(stored, used),
        "pid": stored.pid,
        "source": stored.begun.source,
        "target": stored.begun.target,
        "size": stored.begun.size,
        "durable": stored.bytes_done,
        "zero": stored.zeros,
        "written": stored.written,
        "ranges": len(stored.done),
        "begun": round(stored.created, 3),
        "updated": round(stored.updated, 3),
        "happened": [_fact(one) for one in stored.happened],
    }


def _fact(one: Happening) -> dict[str, object]:
    found: dict[str, object] = {"at": round(one.at, 3), "what": one.kind, "text": one.text}
    if one.start is not None and one.length is not None:
        found |= {"start": one.start, "length": one.length}
    return found


def lines(stored: Stored, used: bool, resume_with: str) -> list[str]:
    """For people."""
    from mpconv.inspection.texts import size_text  # noqa: PLC0415

    state, size, done = state_of(stored, used), stored.begun.size, stored.bytes_done
    percent = 100 * done / size if size else 100.0
    told = [
        f"state: {state}" + (f" (pid {stored.pid})" if state == "running" else ""),
        f"source: {stored.begun.source}",
        f"target: {stored.begun.target}",
        f"size: {size_text(size)} ({size} bytes)",
        f"durable: {size_text(done)} ({done} bytes, {percent:.2f}%), {size_text(stored.zeros)} of it zeros",
    ]
    if stored.written > done:
        told.append(f"written: {size_text(stored.written)}")
    told += [f"begun: {when(stored.created)}", f"journal written: {when(stored.updated)}"]
    told += [f"{when(one.at)} {_event(one)}" for one in stored.happened[-_SHOWN:]]
    if state not in {"running", "finished"}:
        told.append(f"go on with: {resume_with}")
    return told


def _event(one: Happening) -> str:
    where = "" if one.start is None or one.length is None else f" bytes {one.start} to {one.start + one.length - 1}"
    return f"{one.kind}{where}" + (f": {one.text}" if one.text else "")


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
