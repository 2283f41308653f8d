"""Options to watch a job while it runs: --metrics and --web."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mpconv.errors import UsageError

if TYPE_CHECKING:
    from mpconv.jobs.heard import Heard
    from mpconv.watch.watch import Watch

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


def watch_of(options: dict[str, Any]) -> Watch | None:
    """What `--metrics` and `--web` ask for; None: nobody watches. UsageError when it cannot be had."""
    wanted = {name: options.get(name) for name in _NEEDED if options.get(name) is not None}
    if not wanted:
        return None
    check_installed(*wanted)

    from mpconv.watch.address import parse  # noqa: PLC0415  (few watch)
    from mpconv.watch.watch import Watch  # noqa: PLC0415

    where = {name: parse(text, f"--{name}") for name, text in wanted.items() if text is not None}
    quiet = bool(options.get("quiet")) and all(address.loopback for address in where.values())
    return Watch(**where, tell=_silent if quiet else tell)


def watched(watch: Watch | None, inner: Heard, name: str, *, source: str, target: str, targets: int = 1) -> Heard:
    """The observer of a job that is watched, or not."""
    if watch is None:
        return inner
    return watch.job(name, inner, source=source, target=target, targets=targets)


def check_installed(*options: str) -> None:
    """UsageError when what an option needs is missing."""
    for option in options:
        for module in _NEEDED[option]:
            if importlib.util.find_spec(module) is None:
                package = module.replace("_", "-")
                raise UsageError(f"--{option} needs {package}, which is not installed: pip install 'mpconv[{option}]'")


def tell(text: str) -> None:
    """At which URL."""
    print(f"mpconv: {text}", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """-q, and the URL is what was asked for."""
