"""`mpconv report`: what a journal tells of its copy, as a page in a file."""

from __future__ import annotations

import os
import time

import click

from mpconv.cli.options.command import ImageCommand, show_text
from mpconv.model.errors import Fatal, UsageError


@click.command(cls=ImageCommand)
@click.option("-o", "--output-file", metavar="FILE", help="Write it to FILE; -: to standard output.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for programs; without -o to standard output.")
@click.argument("names", nargs=-1, metavar="JOURNAL")
def report(output_file: str | None, as_json: bool, names: tuple[str, ...]) -> None:
    """Make a report of the copy whose journal is JOURNAL: one HTML file, which needs nothing else.

    It has the map of the disk, throughput over time, faults and what was done about them, and digests.
    """
    if len(names) != 1:
        raise UsageError("Expecting one journal: mpconv report JOURNAL -o FILE")
    [path] = names
    if output_file is None and not as_json:
        raise UsageError("-o FILE is needed, where the report is to be written; or --json")

    import msgspec  # noqa: PLC0415 - --help does without

    from mpconv._version import __version__  # noqa: PLC0415
    from mpconv.ui.monitor.journals import job_of  # noqa: PLC0415
    from mpconv.ui.monitor.page import report_page  # noqa: PLC0415

    job = job_of(path)
    facts = msgspec.json.encode({"mpconv": __version__, "made": round(time.time(), 3), "jobs": [job]})
    if as_json:
        text = msgspec.json.format(facts, indent=4).decode()
    else:
        text = report_page(f"mpconv: {job.source} to {job.target}", facts)
    if output_file is None or output_file == "-":
        show_text(text.rstrip("\n") + "\n")
    else:
        _write(output_file, path, text)


def _write(name: str, journal: str, text: str) -> None:
    """UsageError when that would overwrite the journal."""
    try:
        if os.path.exists(name) and os.path.samefile(name, journal):
            raise UsageError(f"'{name}' is the journal itself: choose another file for the report")
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise Fatal(f"error while writing the report '{name}': {why}: choose another file") from error
