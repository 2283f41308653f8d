"""What stands in a plan's file, table by table. Every mistake is found, not only the first one. Pure."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict, fields

from mpconv.model.units import parse_seconds, parse_size

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_KNOWN_PLACEHOLDERS = ("name", "date")
_BETWEEN = {"weight": (1, 1000), "retries": (0, 1000), "workers": (1, 256)}
"""Of a job's numbers the least and the most."""
_FEW = 6
"""Keys, which can all be named in a line."""

_Table = TypeVar("_Table", bound=Struct)
_Value = TypeVar("_Value")
Number = int | UnsetType
Text = str | UnsetType
Switch = bool | UnsetType
Amount = int | str | UnsetType
"""Bytes or seconds: a number, or a text with a unit."""


class Problem(Struct, frozen=True):
    """`job`: its name, or how it is found without one; empty: it is the whole plan's."""

    job: str
    text: str

    def __str__(self) -> str:
        return f"{self.job}: {self.text}" if self.job else self.text


class LimitsTable(Struct, frozen=True, kw_only=True):
    """[limits]"""

    jobs: Number = UNSET
    workers: Number = UNSET
    rate: Amount = UNSET
    servers: dict[str, int | str] | UnsetType = UNSET


class JobTable(Struct, frozen=True, kw_only=True):
    """[[job]], and but for name and source [defaults]. What is not about scheduling is an option of convert's, whose
    long name it has; `options` is its -o.
    """

    name: Text = UNSET
    source: str | list[str] | UnsetType = UNSET
    target: Text = UNSET
    priority: Number = UNSET
    weight: Number = UNSET
    retries: Number = UNSET
    retry_delay: float | str | UnsetType = UNSET
    options: dict[str, bool | int | str] | UnsetType = UNSET
    source_format: Text = UNSET
    target_format: Text = UNSET
    no_create: Switch = UNSET
    oob_writes: Switch = UNSET
    parallel: Number = UNSET
    workers: Number = UNSET
    sparse_size: Amount = UNSET
    target_is_zero: Switch = UNSET
    target_cache: Text = UNSET
    source_cache: Text = UNSET
    rate_limit: Amount = UNSET
    copy_range_offloading: Switch = UNSET
    salvage: Switch = UNSET
    no_hole_map: Switch = UNSET
    force_share: Switch = UNSET
    allow_same_image: Switch = UNSET
    compress: Switch = UNSET
    compression_level: Number = UNSET
    backing: Text = UNSET
    backing_format: Text = UNSET
    snapshot: Text = UNSET
    digest: Switch = UNSET
    verify: bool | str | UnsetType = UNSET
    retry_for: float | str | UnsetType = UNSET
    allow_backing: bool | str | list[str] | UnsetType = UNSET
    allow_data_file: bool | str | list[str] | UnsetType = UNSET

    @property
    def sources(self) -> list[str]:
        if isinstance(self.source, UnsetType):
            return []
        return [self.source] if isinstance(self.source, str) else self.source


OWN = ("name", "source", "target", "priority", "weight", "retries", "retry_delay", "options")
"""What no option of convert's says."""
_NOT_IN_DEFAULTS = ("name", "source")


class PlanTable(Struct, frozen=True, kw_only=True):
    """All of it. `jobs`: with the defaults filled in, and without the values that are mistakes."""

    limits: LimitsTable
    jobs: list[JobTable]


def read(text: str) -> tuple[PlanTable, list[Problem]]:
    """The plan, and what is wrong with it."""
    problems: list[Problem] = []
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        return _nothing(f"it is no TOML: {message[:1].lower()}{message[1:]}")
    except ValueError:
        return _nothing("it has a number of thousands of digits")
    except RecursionError:
        return _nothing("its tables or lists lie too deep in one another")
    problems += [Problem("", unknown(key, ("limits", "defaults", "job"))) for key in tables.keys() - _TOP]
    limits = _table(tables.get("limits", {}), LimitsTable, "limits", problems)
    defaults = _table(tables.get("defaults", {}), JobTable, "defaults", problems, but=_NOT_IN_DEFAULTS)
    listed = tables.get("job", [])
    if not isinstance(listed, list):
        problems.append(Problem("", "a job begins with [[job]], in double brackets, not with [job]"))
        listed = []
    if not listed and not problems:
        problems.append(Problem("", "it has no job: write [[job]], and below it name, source and target"))
    jobs: list[JobTable] = []
    for number, found in enumerate(listed, 1):
        label = label_of(found.get("name") if isinstance(found, dict) else None, number)
        job = _table(found, JobTable, label, problems)
        if job is not None:
            jobs.append(_with_defaults(job, defaults))
    problems += _of_jobs(jobs)
    return PlanTable(limits=limits or LimitsTable(), jobs=jobs), problems


def _nothing(why: str) -> tuple[PlanTable, list[Problem]]:
    return PlanTable(limits=LimitsTable(), jobs=[]), [Problem("", why)]


_TOP = {"limits", "defaults", "job"}


def label_of(name: object, number: int) -> str:
    """How people find a job, the `number`-th from 1."""
    return f"job '{name}'" if isinstance(name, str) else f"job {number}"


def unknown(key: str, known: Iterable[str]) -> str:
    """What to say of a key that nobody knows."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"unknown key '{key}': did you mean '{close[0]}'?"
    return f"unknown key '{key}'" + (f": there are {', '.join(known)}" if 0 < len(known) <= _FEW else "")


def _table(
    found: object, kind: type[_Table], label: str, problems: list[Problem], but: tuple[str, ...] = ()
) -> _Table | None:
    if not isinstance(found, dict):
        problems.append(Problem(label, "it must be a table: its keys stand below it, one a line"))
        return None
    known = {field.name: field.type for field in fields(kind) if field.name not in but}
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key not in known:
            own = "each job has its own: write it below [[job]]"
            problems.append(Problem(label, f"{key}: {own}" if key in but else unknown(key, known)))
            continue
        try:
            values[key] = msgspec.convert(value, known[key])
        except UnicodeError:
            problems.append(Problem(label, f"{key}: there is half a character in it"))
        except msgspec.ValidationError as error:
            problems.append(Problem(label, f"{key}: {_plain(str(error))}"))
    return kind(**values)


def _plain(text: str) -> str:
    """msgspec's words in TOML's."""
    text = _KIND.sub(lambda match: _KINDS[match[0]], text.replace(" | ", " or ")).replace("`", "")
    return f"{text[:1].lower()}{text[1:]}"


_KINDS = {
    "str": "a text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
}
_KIND = re.compile(rf"\b(?:{'|'.join(_KINDS)})\b")


def _with_defaults(job: JobTable, defaults: JobTable | None) -> JobTable:
    if defaults is None:
        return job
    values = asdict(defaults) | {key: value for key, value in asdict(job).items() if value is not UNSET}
    if not isinstance(job.options, UnsetType) and job.options and not isinstance(defaults.options, UnsetType):
        values["options"] = defaults.options | job.options
    return JobTable(**values)


def _of_jobs(jobs: list[JobTable]) -> list[Problem]:
    """What is wrong with each by itself, and with their names."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for number, job in enumerate(jobs, 1):
        label = label_of(job.name, number)
        if isinstance(job.name, UnsetType):
            problems.append(Problem(label, 'it has no name: name = "..."'))
        elif (why := of_name(job.name, seen)) is not None:
            problems.append(Problem(label, why))
        if not job.sources or not all(job.sources):
            problems.append(Problem(label, 'it has no source: source = "..."'))
        if isinstance(job.target, UnsetType) or not job.target:
            problems.append(Problem(label, 'it has no target: target = "..."'))
        else:
            wrong = [word for word in _PLACEHOLDER.findall(job.target) if word not in _KNOWN_PLACEHOLDERS]
            known = "only {name} and {date}"
            problems += [Problem(label, f"target: there is no {{{word}}}, {known}") for word in wrong]
        numbers = {key: value for key in _BETWEEN if (value := getattr(job, key)) is not UNSET}
        problems += [Problem(label, why) for why in of_numbers(numbers)]
    return problems


def of_name(name: str, seen: set[str]) -> str | None:
    """What is wrong with a job's name; if nothing is, it is one of those `seen`."""
    if _NAME.fullmatch(name) is None:
        return "a name is at most 100 letters, digits, '.', '_' and '-', no '.', '_', '-' first"
    if name in seen:
        return "another job has that name: give each its own"
    seen.add(name)
    return None


def of_numbers(numbers: dict[str, int]) -> list[str]:
    """What is wrong with a job's numbers, by their keys."""
    limits = [(key, value, *_BETWEEN[key]) for key, value in numbers.items()]
    return [
        f"{key}: it must be between {least} and {most}"
        for key, value, least, most in limits
        if not least <= value <= most
    ]


def filled_in(target: str, name: str, date: str) -> str:
    """A target with {name} and {date}, which is of the form 2026-11-25."""
    return target.replace("{name}", name).replace("{date}", date)


def amount(value: int | str) -> int:
    """Bytes. ValueError, with what is wrong."""
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{value} is below 0")
        return value
    return parse_size(value)


def seconds(value: float | str) -> float:
    """Seconds. ValueError, with what is wrong."""
    if isinstance(value, int | float):
        if not 0 <= value <= 86400 * 1000:
            raise ValueError(f"{value:g} is no time: it must be between 0 and 86400000 seconds")
        return float(value)
    return parse_seconds(value)


def checked(
    value: object, convert: Callable[[Any], _Value], default: _Value, label: str, key: str, problems: list[Problem]
) -> _Value:
    """A value that stands in the plan, or the default, also where it is wrong."""
    if value is UNSET:
        return default
    try:
        return convert(value)
    except ValueError as error:
        problems.append(Problem(label, f"{key}: {error}"))
        return default
