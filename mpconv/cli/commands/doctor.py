"""`mpconv doctor`: what a storage URL can do, and what is in the way."""

from __future__ import annotations

import click

from mpconv.cli.options.command import ImageCommand, is_json, show, show_text
from mpconv.cli.options.types import Duration
from mpconv.model.errors import UsageError

_PROBLEM = 2
"""The exit code where something is in the way; 1 is for the command line."""


@click.command(cls=ImageCommand)
@click.option("-f", "--format", "fmt", metavar="FMT", help="The source's format (default: looked at).")
@click.option("--output", default="human", metavar="human|json", help="For people or for programs.")
@click.option(
    "--seconds", type=Duration(), default=3.0, metavar="TIME", help="How long each URL is measured; default 3."
)
@click.option("--write-test", metavar="URL", help="This target is scratch: a part of it may be OVERWRITTEN to test it.")
@click.argument("names", nargs=-1, metavar="URL...")
def doctor(fmt: str | None, output: str, seconds: float, write_test: str | None, names: tuple[str, ...]) -> int:
    """Tell what a storage URL can do and what is in the way; several: the first is the source, the others are targets.

    Nothing is written, but with --write-test. Exit code 0: nothing is in the way, 2: something is, 1: the command line
    is wrong.
    """
    if not names and write_test is None:
        raise UsageError("Expecting the URL of an image, or those of a source and its targets")
    as_json = is_json(output)

    import asyncio  # noqa: PLC0415 - --help does without
    import shutil  # noqa: PLC0415

    from mpconv.inspection import queries  # noqa: PLC0415
    from mpconv.inspection.doctor.findings import Examination  # noqa: PLC0415
    from mpconv.inspection.doctor.texts import WIDTH, lines, summary  # noqa: PLC0415
    from mpconv.inspection.texts import json_text  # noqa: PLC0415

    width = shutil.get_terminal_size((WIDTH, 0)).columns

    def tell(one: Examination) -> None:
        if not as_json:
            show([*lines(one, width), ""])

    asked = queries.examine(names, image_format=fmt, seconds=seconds, scratch=write_test, on_examined=tell)
    found = asyncio.run(asked)
    ok = all(one.ok for one in found)
    if as_json:
        show_text(json_text({"ok": ok, "images": [one.as_json() for one in found]}) + "\n")
    else:
        show([summary(found)])
    return 0 if ok else _PROBLEM
