"""From a plan's file to jobs: each job's keys become convert's options, and are judged as convert judges them."""

from __future__ import annotations

import os
import time
from typing import Any

import click
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from mpconv import transports
from mpconv.cache import CACHE_MODES
from mpconv.cli.convert import convert
from mpconv.cli.copying import options_of, places_of
from mpconv.cli.refusals import check_combination
from mpconv.errors import MpconvError
from mpconv.fanout import plan as plans
from mpconv.fanout.plan import OWN, JobTable, Problem, checked
from mpconv.fanout.spec import RETRIES, RETRY_SECONDS, Fanout, Limits, Spec, server_of
from mpconv.job import Place
from mpconv.jobs import course as courses
from mpconv.protocol.keys import Listening
from mpconv.sharing import anywhere

_FOR_CONVERT = ("/source", "/target")
"""Names that stand for the images while single options are looked at."""


def resolved(
    text: str, journal: str | None, listening: Listening | None, *, jobs: int | None, workers: int | None
) -> tuple[Fanout, list[Problem]]:
    """What the plan asks for, and all that is wrong with it. `jobs`, `workers`: limits in place of the plan's."""
    table, problems = plans.read(text)
    date = time.strftime("%Y-%m-%d")
    specs: list[Spec] = []
    for number, job in enumerate(table.jobs, 1):
        label = plans.label_of(job.name, number)
        before = len(problems)
        spec = _spec(job, label, date, problems)
        if spec is not None:
            specs.append(spec)
            if len(problems) == before:
                problems += [Problem(label, why) for why in _unfit(spec, journal, listening)]
    limits = _limits(table.limits, specs, problems, jobs, workers)
    problems += _collisions(specs)
    return Fanout(jobs=specs, limits=limits), problems


def _spec(job: JobTable, label: str, date: str, problems: list[Problem]) -> Spec | None:
    """None when it has no name, source or target, or convert would refuse it."""
    delay = checked(job.retry_delay, plans.seconds, RETRY_SECONDS, label, "retry_delay", problems)
    words = _words(job, label, problems)
    if words is None or isinstance(job.name, UnsetType) or isinstance(job.target, UnsetType) or not job.sources:
        return None
    target = plans.filled_in(job.target, job.name, date)
    try:
        options = convert.make_context("mpconv", [*words, "--", *job.sources, target]).params
        check_combination(options)
        for key in ("source_cache", "target_cache"):
            if options[key] not in CACHE_MODES:
                raise click.UsageError(f"{key}: there is no '{options[key]}': one of {', '.join(CACHE_MODES)}")
        sources, place, made, unusable = places_of(job.sources, target, options)
        chosen = options_of(options, place, made, unusable, target, None)
        if chosen.refusal is not None:
            raise click.UsageError(chosen.refusal)
    except (MpconvError, click.ClickException) as error:
        problems.append(Problem(label, _why(error)))
        return None
    return Spec(
        name=job.name,
        sources=sources,
        target=place,
        options=chosen,
        priority=_or(job.priority, 0),
        weight=_or(job.weight, 1),
        retries=_or(job.retries, RETRIES),
        retry_delay=delay,
    )


def _or(value: int | UnsetType, default: int) -> int:
    return default if isinstance(value, UnsetType) else value


def _why(error: MpconvError | click.ClickException) -> str:
    return str(error) if isinstance(error, MpconvError) else " ".join(error.format_message().split())


def _words(job: JobTable, label: str, problems: list[Problem]) -> list[str] | None:
    """The job's keys as convert's options. Each is tried alone, so that all wrong ones are named; None: some are."""
    given = {key: value for key, value in asdict(job).items() if value is not UNSET}
    words: list[str] = []
    wrong = False
    judged = {problem.text.partition(":")[0] for problem in problems if problem.job == label}
    for key, value in given.items():
        if key in OWN and key != "options":
            continue
        if key in judged:  # all that can be said of it is said
            wrong = True
            continue
        option = _option_words(key, value)
        try:
            convert.make_context("mpconv", [*option, "--", *_FOR_CONVERT])
        except (MpconvError, click.ClickException) as error:
            problems.append(Problem(label, f"{key}: {_why(error)}"))
            wrong = True
        words += option
    return None if wrong else words


def _option_words(key: str, value: Any) -> list[str]:
    if key == "options":
        pairs = (f"{name}={_option_value(one)}" for name, one in value.items())
        return [f"-o{','.join(pairs)}"] if value else []
    flag = f"--{key.replace('_', '-')}"
    if value is False:
        return []
    if value is True:
        return [flag]
    return [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]


def _option_value(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


def _unfit(spec: Spec, journal: str | None, listening: Listening | None) -> list[str]:
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


def _limits(
    table: plans.LimitsTable, specs: list[Spec], problems: list[Problem], jobs: int | None, workers: int | None
) -> Limits:
    label = "limits"
    used = {server for spec in specs for server in spec.servers}
    servers: dict[str, int] = {}
    for name, limit in (table.servers if not isinstance(table.servers, UnsetType) else {}).items():
        servers[name.lower()] = checked(limit, plans.amount, 0, label, f"servers: {name}", problems)
        if name.lower() not in used and specs:
            text = plans.unknown(name, used).replace("unknown key", "servers: no job uses")
            text += "" if text.endswith("?") else ": write it as the jobs' URLs do, or take it out"
            problems.append(Problem(label, text))
    if jobs is None and not isinstance(table.jobs, UnsetType):
        jobs = table.jobs
    if workers is None and not isinstance(table.workers, UnsetType):
        workers = table.workers
    if jobs is not None and jobs < 1:
        problems.append(Problem(label, "jobs: it must be at least 1"))
    if workers is not None and not 0 <= workers <= 256:
        problems.append(Problem(label, "workers: it must be between 0 and 256"))
    if jobs is not None and workers and jobs > workers:
        text = f"{jobs} jobs at once need as many workers, and there are {workers}: choose more workers or fewer jobs"
        problems.append(Problem(label, text))
    rate = checked(table.rate, plans.amount, 0, label, "rate", problems)
    return Limits(jobs=jobs, workers=workers, rate=rate, servers=servers)


def _collisions(specs: list[Spec]) -> list[Problem]:
    """What one job writes no other one may write or read."""
    problems: list[Problem] = []
    writers: dict[str, str] = {}
    for spec in specs:
        if spec.target.url.startswith("null:"):
            continue
        at = _identity(spec.target)
        if at in writers:
            why = f"job '{writers[at]}' has the same target, '{transports.redacted(spec.target.url)}'"
            problems.append(Problem(f"job '{spec.name}'", f"{why}: give each its own, such as with {{name}}"))
        writers.setdefault(at, spec.name)
    for spec in specs:
        for at in dict.fromkeys(_identity(place) for place in spec.sources):
            if at in writers and writers[at] != spec.name:
                why = f"its source is the target of job '{writers[at]}', which may run at the same time"
                problems.append(Problem(f"job '{spec.name}'", f"{why}: put it into another plan"))
            elif at in writers:
                why = "source and target are the same image: name another target"
                problems.append(Problem(f"job '{spec.name}'", why))
    return problems


def _identity(place: Place) -> str:
    """By what two names for one image are known to be so, as far as the names tell."""
    if transports.is_local(place.url):
        return os.path.realpath(place.url.removeprefix("file://").removeprefix("file:"))
    url = courses.without_password(place.url).partition("?")[0]
    host = server_of(url)
    scheme, _, rest = url.partition("://")
    where = rest.rpartition("@")[2]
    return f"{scheme.lower()}://{host or ''}/{where.partition('/')[2]}" if host else url
