"""What workers of other hosts must be able to open by the same name. Pure, but for the working directory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from mpconv import transports
from mpconv.jobs.copy.target import Target
from mpconv.model.errors import UsageError
from mpconv.model.place import Place
from mpconv.protocol.keys import Listening
from mpconv.transports.base import LOCAL_MARKS


def places_for_all(
    sources: Sequence[Place], targets: Sequence[Target], listening: Listening
) -> tuple[list[Place], list[Place]]:
    """The sources' and the targets', as any host may open them. UsageError when other hosts cannot, or have other files
    under these names.
    """
    for target in targets:
        if not target.divisible:
            raise UsageError(f"only one worker at a time may write to '{target.written.name}': leave out --listen")
    return (
        [anywhere(place, listening) for place in sources],
        [anywhere(target.place, listening) for target in targets],
    )


def _is_proved(place: Place) -> bool:
    """Whether it is known by more than a number of its file system's: then it may be reached by other links there."""
    return "made at" in place.marks


def for_workers(place: Place, listening: Listening | None) -> Place:
    """As its workers are told it: as any host may open it, if those of other hosts may take part."""
    return place if listening is None else anywhere(place, listening)


def anywhere(place: Place, listening: Listening) -> Place:
    """A place by a name that does not depend on where one stands. UsageError as above."""
    url = place.url
    if url.startswith("memory:"):
        raise UsageError(f"--listen: '{url}' is in one process alone, and no other host has it")
    if transports.is_local(url):
        if not listening.shared_files:
            raise UsageError(f"--listen: '{url}' is a file of this host; if all hosts have the same: --shared-files")
        url = f"file:{os.path.abspath(url.removeprefix('file://').removeprefix('file:'))}"
    return msgspec.structs.replace(
        place,
        url=url,
        beneath=None if _is_proved(place) else place.beneath,
        marks={what: told for what, told in place.marks.items() if what not in LOCAL_MARKS},
        backing=anywhere(place.backing, listening) if place.backing is not None else None,
        data_file=anywhere(place.data_file, listening) if place.data_file is not None else None,
    )
