"""What comes before the jobs of a fan-out: other limits, the workers' modules, the journal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mpconv.jobs.fanout.spec import Fanout
from mpconv.model.errors import UsageError
from mpconv.workers.launch.local import modules_for

if TYPE_CHECKING:
    from mpconv.jobs.fanout.journal_dir import JournalDirectory


def with_limits(plan: Fanout, *, jobs: int | None, workers: int | None, rate: int | None) -> Fanout:
    """The plan with other limits, where they are given."""
    given = {"jobs": jobs, "workers": workers, "rate": rate}
    given = {key: value for key, value in given.items() if value is not None}
    limits = replace(plan.limits, **given)
    if limits.jobs and limits.workers and limits.jobs > limits.workers:
        why = f"{limits.jobs} jobs at once need as many workers, and there are {limits.workers}"
        raise UsageError(f"{why}: choose more --workers or fewer --jobs")
    return replace(plan, limits=limits)


def left_in(path: str, *, jobs: int | None, workers: int | None, rate: int | None) -> Fanout:
    """The plan of a fan-out that goes on, by its journal. UsageError when a job that is left wants for a password."""
    from mpconv.jobs.copy.manifest import check_password_of  # noqa: PLC0415
    from mpconv.jobs.fanout.journal_dir import read, stored  # noqa: PLC0415  (SQLite: not every fan-out has a journal)
    from mpconv.journal.records import State  # noqa: PLC0415

    plan = with_limits(read(path).plan, jobs=jobs, workers=workers, rate=rate)
    for spec in plan.jobs:
        found = stored(path, spec.name)
        if found is None or found.state is not State.FINISHED:
            for place in spec.places:
                check_password_of(place)
    return plan


def modules_of(plan: Fanout) -> list[str]:
    """What the workers are to import, as far as it is known yet."""
    wanted: set[str] = set()
    for spec in plan.jobs:
        chosen = spec.options
        wanted |= modules_for(spec.sources, spec.target, compressing=chosen.compress, digesting=chosen.digests)
    return sorted(wanted)


@contextlib.contextmanager
def ledger_of(plan: Fanout, begun: str | None, resumed: str | None) -> Iterator[JournalDirectory | None]:
    """The journal, ours while the context lasts: one to begin, one to go on with, or none."""
    path = resumed or begun
    if path is None:
        yield None
        return
    from mpconv.jobs.fanout.journal_dir import JournalDirectory  # noqa: PLC0415  (as above)

    ledger = JournalDirectory.take_up(path) if resumed else JournalDirectory.begin(path, plan)
    try:
        yield ledger
    finally:
        ledger.close()
