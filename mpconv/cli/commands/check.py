"""`mpconv check`: qemu-img check's options, texts and exit codes; nothing is ever repaired."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import msgspec

from mpconv.cli.options.command import ImageCommand, image_options, is_json, one_name, show
from mpconv.cli.qemu.format_names import RAW
from mpconv.cli.qemu.places import places, probed
from mpconv.model.errors import UsageError, one_line
from mpconv.model.names import readable
from mpconv.model.place import Place
from mpconv.options.cache import CACHE_MODES

if TYPE_CHECKING:
    from mpconv.formats.qcow2.check.accounts import Report

_CLEAN, _NOT_DONE, _CORRUPT, _LEAKS = 0, 1, 2, 3
QCOW2 = "qcow2"


@click.command(cls=ImageCommand)
@click.option("-r", "--repair", metavar="WHAT", help="Refused: mpconv check does not repair.")
@click.option("-T", "cache", metavar="MODE", default="writeback", help=f"{', '.join(CACHE_MODES)}; default writeback.")
@click.option("-p", "--progress", is_flag=True, help="Taken, and shows nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but errors.")
@image_options
def check(
    fmt: str | None,
    output: str,
    repair: str | None,
    cache: str,
    progress: bool,
    quiet: bool,
    image_opts: bool,
    force_share: bool,
    names: tuple[str, ...],
) -> int:
    """Look for errors in a qcow2 image, which is only read.

    Exit code 0: there are none; 2: it is corrupt; 3: clusters are lost to use; 1: the check could not be done; 63: the
    format has nothing to check.
    """
    as_json = is_json(output)
    if repair is not None:
        raise UsageError("mpconv check does not repair: qemu-img check -r does")
    name = one_name(names)
    if cache not in CACHE_MODES:
        raise UsageError(f"Invalid source cache option: {cache}")
    place = _place(name, fmt, image_opts, direct=CACHE_MODES[cache].direct, shared=force_share)

    import asyncio  # noqa: PLC0415 - --help does without

    from mpconv.inspection import queries  # noqa: PLC0415
    from mpconv.transports import redacted  # noqa: PLC0415

    found = asyncio.run(queries.check(place, on_finding=_tell))
    if not quiet:
        show(json_lines(found, redacted(place.url if image_opts else name)) if as_json else lines(found))
    if found.check_errors:
        print("mpconv: Check failed", file=sys.stderr)
        return _NOT_DONE
    if found.corruptions:
        return _CORRUPT
    return _LEAKS if found.leaks else _CLEAN


def _place(name: str, fmt: str | None, image_opts: bool, *, direct: bool, shared: bool) -> Place:
    """Where the image lies, with its format, None for one that its first bytes must tell."""
    known = None if fmt == QCOW2 and not image_opts else fmt
    [place] = places([name], known, image_opts, direct)
    said = place.format or (None if probed([name], fmt, image_opts) else RAW) if image_opts else fmt
    return msgspec.structs.replace(place, format=said, shared=shared or place.shared)


def _tell(line: str) -> None:
    """What was found, as QEMU writes it: without the program's name, and with -q too."""
    print(one_line(line), file=sys.stderr)


def lines(found: Report) -> Iterator[str]:
    """For people."""
    if found.clean:
        yield "No errors were found on the image."
    if found.corruptions:
        yield ""
        yield f"{found.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if found.leaks:
        yield ""
        yield f"{found.leaks} leaked clusters were found on the image."
        yield "This means waste of disk space, but no harm to data."
    if found.check_errors:
        yield ""
        yield f"{found.check_errors} internal errors have occurred during the check."
    if found.total and found.allocated:
        shares = [found.fragmented * 100 / found.allocated, found.compressed * 100 / found.allocated]
        yield (
            f"{found.allocated}/{found.total} = {found.allocated * 100 / found.total:.2f}% allocated, "
            f"{shares[0]:.2f}% fragmented, {shares[1]:.2f}% compressed clusters"
        )
    yield f"Image end offset: {found.end}"


def json_lines(found: Report, name: str) -> Iterator[str]:
    """For programs: what is 0 is left out, except check-errors."""
    from mpconv.inspection.texts import json_text  # noqa: PLC0415

    facts: dict[str, int | str] = {
        "image-end-offset": found.end,
        "compressed-clusters": found.compressed,
        "total-clusters": found.total,
        "corruptions": found.corruptions,
        "check-errors": found.check_errors,
        "leaks": found.leaks,
        "allocated-clusters": found.allocated,
        "filename": readable(name),
        "format": QCOW2,
        "fragmented-clusters": found.fragmented,
    }
    yield from json_text({key: value for key, value in facts.items() if value or key == "check-errors"}).split("\n")
