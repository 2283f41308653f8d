"""`mpconv status`: how far a copy is that keeps a journal."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from mpconv.cli.options.command import ImageCommand, is_json, show, show_text
from mpconv.cli.options.monitor import check_installed, tell, web_option
from mpconv.journal.records import Happening, Stored
from mpconv.model.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from mpconv.ui.monitor.journals import Kept

_SHOWN = 10
"""Of what happened, the last; all of it with --output=json."""


@click.command(cls=ImageCommand)
@click.option("--output", default="human", metavar="human|json", help="For people or for programs.")
@web_option
@click.argument("names", nargs=-1, metavar="FILE...")
def status(output: str, web: str | None, names: tuple[str, ...]) -> None:
    """Tell how far a copy is whose journal is FILE, or a fan-out whose journal it is, while it runs and afterwards.

    With --web serve a page of it, or of several, until Ctrl-C.
    """
    if web is not None and names:
        _serve(web, list(dict.fromkeys(names)))
        return
    if len(names) != 1:
        raise UsageError("Expecting one journal: mpconv status FILE")
    as_json = is_json(output)
    [path] = names

    if os.path.isdir(path):
        from mpconv.cli.output.fanout_status import shown  # noqa: PLC0415  (few need it)

        show(shown(path, as_json=as_json))
        return

    from mpconv.inspection.texts import json_text  # noqa: PLC0415
    from mpconv.jobs.copy.manifest import begun  # noqa: PLC0415 - --help does without
    from mpconv.journal.file import peek, resume_with  # noqa: PLC0415

    stored, used = peek(path)
    stored = begun(stored, path)
    if as_json:
        show_text(json_text(facts(stored, used)) + "\n")
    else:
        show(lines(stored, used, resume_with(path)))


def _serve(web: str, paths: list[str]) -> None:
    import asyncio  # noqa: PLC0415  (few serve)
    import contextlib  # noqa: PLC0415

    check_installed("web")

    from mpconv.coordination.signals import interruptible  # noqa: PLC0415
    from mpconv.ui.monitor.address import parse  # noqa: PLC0415
    from mpconv.ui.monitor.journals import Journals  # noqa: PLC0415
    from mpconv.ui.monitor.server import serving  # noqa: PLC0415

    address = parse(web, "--web")
    journals = Journals([one for path in paths for one in _kept(path)])

    async def serve() -> None:
        async with serving(journals.facts, None, address, journals=True) as told:
            for text in told:
                tell(text)
            await interruptible(asyncio.Event().wait())

    with contextlib.suppress(Interrupted):
        asyncio.run(serve())


def _kept(path: str) -> list[Kept]:
    """The journal, or those of a fan-out's jobs."""
    from mpconv.ui.monitor.journals import Kept  # noqa: PLC0415

    if not os.path.isdir(path):
        return [Kept(path)]
    from mpconv.jobs.fanout.journal_dir import is_used, journal_of, read  # noqa: PLC0415  (few need these)

    return [Kept(journal_of(path, spec.name), lambda: is_used(path)) for spec in read(path).plan.jobs]


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
