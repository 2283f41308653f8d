"""From a plan's file to jobs: each job's keys become convert's options, and are judged as convert judges them."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from mpconv import transports
from mpconv.cli.commands.convert import convert
from mpconv.cli.qemu.copy_options import options_of, places_of
from mpconv.cli.qemu.refusals import check_combination
from mpconv.jobs.fanout import plan as plans
from mpconv.jobs.fanout import validation
from mpconv.jobs.fanout.plan import OWN, JobTable, Problem, checked
from mpconv.jobs.fanout.spec import RETRIES, RETRY_SECONDS, Fanout, Limits, Spec
from mpconv.model.errors import Fatal, MpconvError
from mpconv.model.names import unusable
from mpconv.options.cache import CACHE_MODES
from mpconv.protocol.keys import Listening

_FOR_CONVERT = ("/source", "/target")
"""Names that stand for the images while single options are looked at."""


def text_of(name: str) -> str:
    """What stands in the file of a plan; `-` is stdin."""
    try:
        if name == "-":
            return sys.stdin.read()
        with open(name, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise Fatal(f"the plan '{name}' cannot be read: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError as error:
        raise Fatal(f"the plan '{name}' cannot be read: it is no UTF-8 at byte {error.start}: is it a plan?") from None
    except ValueError:
        raise Fatal(f"the plan '{name}' cannot be read: {unusable(name)}") from None


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
                problems += [Problem(label, why) for why in validation.unfit(spec, journal, listening)]
    limits = _limits(table.limits, specs, problems, jobs, workers)
    problems += validation.collisions(specs)
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
        for name in (*job.sources, target):
            transports.module_of(name)
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
    problems += validation.of_limits(jobs, workers)
    rate = checked(table.rate, plans.amount, 0, label, "rate", problems)
    return Limits(jobs=jobs, workers=workers, rate=rate, servers=servers)
