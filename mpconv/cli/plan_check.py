"""`mpconv fanout --check`: beyond what the plan says, whether its images can be had. Nothing is written."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mpconv import transports
from mpconv.cli.options.command import show
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.jobs.fanout.encounters import Encounters
from mpconv.model.errors import MpconvError, NoSuchImage, one_line
from mpconv.model.units import human
from mpconv.transports.base import Access

if TYPE_CHECKING:
    from mpconv.jobs.fanout.spec import Fanout, Spec

_AT_ONCE = 8


def check(plan: Fanout, name: str, *, quiet: bool) -> int:
    """Open each source, and each target that exists; the exit code."""
    found = asyncio.run(_looked_at(plan.jobs))
    wrong = [problem for problems, _ in found.values() for problem in problems]
    wrong += map(str, asyncio.run(Encounters(plan.jobs).foreseen()))
    for problem in wrong:
        print(f"mpconv: {one_line(f'{name}: {problem}')}", file=sys.stderr)
    if wrong:
        return 1
    if not quiet:
        count = f"{len(plan.jobs)} jobs" if len(plan.jobs) > 1 else "1 job"
        total = sum(size for _, size in found.values())
        show([f"{name}: {count}, {human(total)}: nothing is wrong"])
    return 0


async def _looked_at(specs: list[Spec]) -> dict[str, tuple[list[str], int]]:
    """For each job what is wrong, and how large it is in bytes."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(spec: Spec) -> tuple[list[str], int]:
        async with room:
            return await _look_at(spec)

    found = await asyncio.gather(*[one(spec) for spec in specs])
    return dict(zip([spec.name for spec in specs], found, strict=True))


async def _look_at(spec: Spec) -> tuple[list[str], int]:
    label = f"job '{spec.name}'"
    options = spec.options
    backed = options.qcow2 is not None and options.qcow2.backing_file is not None
    how = OpenOptions(locked=not options.shared, trust=options.trust, keeps_backing=backed)
    first = replace(spec.sources[0], snapshot=options.snapshot)
    try:
        image, _ = await open_and_resolve([first, *spec.sources[1:]], how)
    except MpconvError as error:
        return [f"{label}: {error}"], 0
    size = image.size
    await image.close()
    made = options.create and transports.is_local(spec.target.url)
    wrong = _unmakeable(label, spec.target.url) if made else []
    if wrong:
        return wrong, size
    try:
        store = await transports.open_place(spec.target, Access.WRITE, locked=True)
    except MpconvError as error:
        if options.create and isinstance(error, NoSuchImage):
            return [], size
        return [f"{label}: {error}"], size
    room, name = store.size, store.name
    await store.close()
    if not made and options.target_format == "raw" and room < size and (store.fixed_size or not options.create):
        return [f"{label}: output file is smaller than input file ({room} of {size} bytes) in '{name}'"], size
    return [], size


def _unmakeable(label: str, url: str) -> list[str]:
    """Why no file can be made there, as far as its directory tells."""
    path = url.removeprefix("file://").removeprefix("file:")
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        return [f"{label}: the target '{one_line(path)}' is a directory: write a file's name behind it"]
    if not os.path.isdir(folder):
        return [f"{label}: there is no directory '{one_line(folder)}' for the target: make it, or mount it"]
    if not os.path.exists(path) and not os.access(folder, os.W_OK | os.X_OK):
        return [f"{label}: no file can be made in '{one_line(folder)}': make it writable for you"]
    return []
