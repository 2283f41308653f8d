"""Whether a plan can be carried out, as far as it can be told before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from mpconv import transports
from mpconv.formats.trust import combined
from mpconv.jobs.copy import manifest as courses
from mpconv.jobs.copy.portable import anywhere
from mpconv.jobs.fanout.plan import Problem, of_name, of_numbers
from mpconv.jobs.fanout.spec import Fanout, Spec, server_of
from mpconv.model.errors import MpconvError
from mpconv.model.place import Place
from mpconv.options.validation import refusal_of
from mpconv.protocol.keys import Listening

TARGET, DATA_FILE = "target", "data file"


def problems_of(plan: Fanout, journal: str | None, listening: Listening | None) -> list[Problem]:
    """All that is wrong with a plan that no file was read for."""
    problems: list[Problem] = [] if plan.jobs else [Problem("", "it has no job")]
    seen: set[str] = set()
    for spec in plan.jobs:
        label = f"job '{spec.name}'"
        found = [of_name(spec.name, seen), None if spec.sources else "it has no source", spec.options.refusal]
        found += of_numbers({"weight": spec.weight, "retries": spec.retries})
        unsound = refusal_of(spec.options, sources=len(spec.sources), local=transports.is_local(spec.target.url))
        found += [unsound] if unsound is not None else unfit(spec, journal, listening)
        problems += [Problem(label, why) for why in found if why is not None]
    return [*problems, *of_limits(plan.limits.jobs, plan.limits.workers, plan.limits.rate), *collisions(plan.jobs)]


def of_limits(jobs: int | None, workers: int | None, rate: int = 0) -> Iterable[Problem]:
    """What is wrong with the numbers of jobs at once, of processes, and of bytes a second."""
    label = "limits"
    if jobs is not None and jobs < 1:
        yield Problem(label, "jobs: it must be at least 1")
    if workers is not None and not 0 <= workers <= 256:
        yield Problem(label, "workers: it must be between 0 and 256")
    if jobs is not None and workers and jobs > workers:
        text = f"{jobs} jobs at once need as many workers, and there are {workers}: choose more workers or fewer jobs"
        yield Problem(label, text)
    if rate < 0:
        yield Problem(label, f"rate: {rate} is below 0")


def unfit(spec: Spec, journal: str | None, listening: Listening | None) -> list[str]:
    """Why it cannot be done with such a journal, or by workers of other hosts."""
    found = []
    try:
        if listening is not None:
            for place in spec.places:
                anywhere(place, listening)
        if journal is not None:
            courses.check_journal(journal, spec.places, spec.options)
    except MpconvError as error:
        found.append(str(error))
    if journal is not None and not spec.options.cache.flushes:
        why = "--journal cannot be used with target_cache unsafe: nothing would ever be durable"
        found.append(f"{why}: choose another")
    if journal is not None and not spec.options.create and spec.options.target_format == "qcow2":
        found.append("--journal cannot be used with no_create and a qcow2 image yet: leave out one of the two")
    return found


def collisions(specs: Sequence[Spec]) -> list[Problem]:
    """What one job writes no other one may write or read."""
    problems: list[Problem] = []
    writers: dict[str, tuple[Spec, str]] = {}
    for spec in specs:
        for what, place in written_by(spec):
            at = _identity(place)
            writer, its = writers.setdefault(at, (spec, what))
            if writer is spec and its == what:
                continue
            name = transports.redacted(place.url)
            why = f"job '{writer.name}' has the same target, '{name}'"
            if what is its is DATA_FILE:
                why = f"job '{writer.name}' has the same data file, '{name}'"
            elif what is not its:
                why = f"job '{writer.name}' has the same {its} as this one's {what}, '{name}'"
            problems.append(Problem(f"job '{spec.name}'", f"{why}: give each its own, such as with {{name}}"))
    for spec in specs:
        for at in dict.fromkeys(_identity(place) for place in spec.sources):
            if at not in writers:
                continue
            writer, what = writers[at]
            if writer.name == spec.name:
                why, fix = f"source and {what} are the same image", f"name another {what}"
            else:
                why = f"its source is the {what} of job '{writer.name}', which may run at the same time"
                fix = "put it into another plan"
            problems.append(Problem(f"job '{spec.name}'", f"{why}: {fix}"))
    return problems


def written_by(spec: Spec) -> list[tuple[str, Place]]:
    """What a job writes, as far as the plan says it, and what each is: the target, and the data file it is to have."""
    if spec.target.url.startswith("null:"):
        return []
    made = spec.options.qcow2 if spec.options.create else None
    if made is None or made.data_file is None:
        return [(TARGET, spec.target)]
    return [(TARGET, spec.target), (DATA_FILE, Place(url=combined(spec.target.url, made.data_file), format="raw"))]


def _identity(place: Place) -> str:
    """By what two names for one image are known to be so, as far as the names tell."""
    if transports.is_local(place.url):
        return os.path.realpath(place.url.removeprefix("file://").removeprefix("file:"))
    url = courses.without_password(place.url).partition("?")[0]
    host = server_of(url)
    scheme, _, rest = url.partition("://")
    where = rest.rpartition("@")[2]
    return f"{scheme.lower()}://{host or ''}/{where.partition('/')[2]}" if host else url
