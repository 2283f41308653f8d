"""`mpconv status`: how far a copy is that keeps a journal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mpconv.cli.options.command import ImageCommand, is_json, show, show_text
from mpconv.cli.options.monitor import check_installed, tell, web_option
from mpconv.model.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from mpconv.ui.monitor.journals import Kept


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

    from mpconv.cli.output.status import facts, lines  # noqa: PLC0415
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
