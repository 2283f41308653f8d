"""Which files of its host a worker opens for a coordinator on another one: those that its host allows, no others.

The coordinator names the images, and who has the key is a coordinator: without this it could have any file of any
worker's host read, and overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from mpconv import transports
from mpconv.model.errors import Denied
from mpconv.model.place import Place
from mpconv.protocol.job import Job
from mpconv.transports.file.beneath import rest

ANY = "/"


def permitted(job: Job, directories: Sequence[str] | None) -> Job:
    """The job, with each of its files to be opened in one of these directories alone (as os.path.realpath tells them,
    or ANY); None: there are none. Denied where it names another file.
    """

    def allowed(place: Place | None) -> Place | None:
        if place is None:
            return None
        place = replace(place, backing=allowed(place.backing), data_file=allowed(place.data_file))
        if not transports.is_local(place.url):
            return place
        if directories is None:
            why = "this host's workers open no files: start them with --shared-files, or --shared-files=DIR"
            raise Denied(f"'{place.url}' is a file, and {why}", image=place.url)
        if ANY in directories:
            return place
        path = place.url.removeprefix("file://").removeprefix("file:")
        for directory in directories:
            if rest(directory, path) is not None:
                return replace(place, beneath=directory)
        where = ", ".join(directories)
        raise Denied(
            f"'{place.url}' lies in none of the directories that --shared-files allows: {where}", image=place.url
        )

    sources, targets = ([found for one in places if (found := allowed(one))] for places in (job.sources, job.targets))
    return replace(job, sources=sources, targets=targets)
