"""Options to watch a job while it runs: --metrics and --web."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mpconv.model.errors import UsageError, one_line

if TYPE_CHECKING:
    from mpconv.coordination.observer import Observer
    from mpconv.ui.monitor.monitor import Monitor
    from mpconv.ui.monitor.record import Record

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_NEEDED = {
    "metrics": ("prometheus_client", "aiohttp"),
    "web": ("aiohttp",),
}
"""What must be installed for each option, which is an extra of the same name."""


def watch_options(command: _Decorated) -> _Decorated:
    """--metrics and --web."""
    return click.option(
        "--metrics", metavar="[ADDR:]PORT", help="Serve metrics to Prometheus while it runs; ADDR: 127.0.0.1."
    )(web_option(command))


def web_option(command: _Decorated) -> _Decorated:
    """--web."""
    return click.option(
        "--web", metavar="[ADDR:]PORT", help="Serve a page to watch it; ADDR: 127.0.0.1; any other needs the token."
    )(command)


def watch_of(options: dict[str, Any]) -> Monitor | None:
    """What `--metrics` and `--web` ask for; None: nobody watches. UsageError when it cannot be had."""
    wanted = {name: options.get(name) for name in _NEEDED if options.get(name) is not None}
    if not wanted:
        return None
    check_installed(*wanted)

    from mpconv.ui.monitor.address import parse  # noqa: PLC0415  (few watch)
    from mpconv.ui.monitor.monitor import Monitor  # noqa: PLC0415

    where = {name: parse(text, f"--{name}") for name, text in wanted.items() if text is not None}
    quiet = bool(options.get("quiet")) and all(address.loopback for address in where.values())
    return Monitor(**where, tell=_silent if quiet else tell)


def watched(
    watch: Monitor | None,
    inner: Observer,
    name: str,
    *,
    source: str,
    target: str,
    targets: int = 1,
    kind: str = "copy",
) -> Observer:
    """The observer of a job that is watched, or not. `kind`: as that of what is known of it."""
    if watch is None:
        return inner
    return watch.job(name, inner, source=source, target=target, targets=targets, kind=kind)


class Part:
    """One of several images that are read one after the other. `record`: None when nobody watches."""

    def __init__(self, record: Record | None) -> None:
        self._record = record

    @contextlib.contextmanager
    def read(self, inner: Observer) -> Iterator[Observer]:
        """Its turn: the observer of the job that reads it. An error is how it ended, and goes on."""
        if self._record is None:
            yield inner
            return
        from mpconv.ui.monitor.monitor import ended  # noqa: PLC0415  (few watch)
        from mpconv.ui.monitor.observer import MonitoringObserver  # noqa: PLC0415

        self._record.starts()
        try:
            yield MonitoringObserver(self._record, inner)
        except BaseException as error:
            ended(self._record, error)
            raise
        ended(self._record, None)

    def found(self, digest: str) -> None:
        """The digest is known."""
        if self._record is not None:
            self._record.digest(digest)


def reading(watch: Monitor | None, names: list[str]) -> list[Part]:
    """A part for each image of these names, all of which are seen to wait. One that comes again gets a number."""
    if watch is None:
        return [Part(None) for _ in names]
    records = []
    for number, name in enumerate(names):
        before = names[:number].count(name)
        record = watch.record(f"{name} #{before + 1}" if before else name, source=name, kind="read")
        record.waits()
        records.append(record)
    return [Part(record) for record in records]


def check_installed(*options: str) -> None:
    """UsageError when what an option needs is missing."""
    for option in options:
        for module in _NEEDED[option]:
            if importlib.util.find_spec(module) is None:
                package = module.replace("_", "-")
                raise UsageError(f"--{option} needs {package}, which is not installed: pip install 'mpconv[{option}]'")


def tell(text: str) -> None:
    """At which URL."""
    print(f"mpconv: {one_line(text)}", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """-q, and the URL is what was asked for."""
