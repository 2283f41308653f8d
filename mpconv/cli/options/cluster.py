"""The options for workers that dask.distributed places."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mpconv.model.errors import Fatal, UsageError

if TYPE_CHECKING:
    from mpconv.protocol.keys import Listening
    from mpconv.workers.launch.dask_cluster import Placement

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_AT = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:.%a-z]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_OTHERS = ("cluster_hosts", "cluster_resource", "cluster_workers")


def cluster_options(command: _Decorated) -> _Decorated:
    """--cluster, --cluster-hosts, --cluster-resource and --cluster-workers."""
    for option in reversed(
        (
            click.option(
                "--cluster", metavar="tcp://HOST:PORT", help="A Dask scheduler, also tls://, whose hosts get workers."
            ),
            click.option(
                "--cluster-hosts",
                metavar="NAME,...",
                help="With --cluster: these hosts, or Dask workers, and no others.",
            ),
            click.option(
                "--cluster-resource",
                metavar="NAME=N,...",
                help="With --cluster: Dask workers that have these resources, which are taken.",
            ),
            click.option(
                "--cluster-workers",
                type=click.IntRange(1, 256),
                metavar="N",
                help="With --cluster: processes on each host (default: one for each core, at most 8).",
            ),
        )
    ):
        command = option(command)
    return command


def check_cluster(options: dict[str, Any]) -> None:
    """UsageError for what cannot be; Fatal when Dask is not installed."""
    if options["cluster"] is None:
        for name in _OTHERS:
            if options[name]:
                raise UsageError(f"--{name.replace('_', '-')} requires --cluster")
        return
    scheme, host, _ = _parts(options["cluster"])
    _resources(options["cluster_resource"])
    if not _installed("distributed"):
        raise Fatal("--cluster needs dask.distributed, which is not installed: pip install 'mpconv[dask]'")
    if options["key_file"] is None and scheme == "tcp":
        from mpconv.workers.launch.addresses import on_loopback  # noqa: PLC0415  (few need it)

        if not on_loopback(host):
            raise UsageError(
                f"--cluster {options['cluster']}: the workers' key would pass in the clear; "
                "use a tls:// scheduler, or --key-file FILE with a file that all hosts have"
            )


def endpoint_for(cluster: str) -> str:
    """Where to listen when nobody says: at the address that reaches the scheduler, at any port that is free."""
    near = _near(cluster)
    return f"tcp://[{near}]:0" if ":" in near else f"tcp://{near}:0"


def placement_of(options: dict[str, Any], listening: Listening | None) -> Placement | None:
    """Who places workers on the cluster, if one is named."""
    if options["cluster"] is None or listening is None:
        return None
    from mpconv.workers.launch.dask_cluster import Cluster, Placement  # noqa: PLC0415  (few need it)

    key_file = options["key_file"]
    return Placement(
        Cluster(
            scheduler=options["cluster"],
            near=_near(options["cluster"]),
            hosts=tuple(name.strip() for name in (options["cluster_hosts"] or "").split(",") if name.strip()),
            resources=tuple(_resources(options["cluster_resource"])),
            processes=options["cluster_workers"] or 0,
            key_file=None if key_file is None else os.path.abspath(key_file),
            keys=listening.keys.for_workers.text if key_file is None else "",
            shared_files=listening.shared_files,
        )
    )


def _parts(address: str) -> tuple[str, str, int]:
    match = _AT.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        raise UsageError(f"'{address}' is not of the form tcp://HOST:PORT or tls://HOST:PORT")
    return match[1], match[2].strip("[]"), int(match[3])


def _near(cluster: str) -> str:
    from mpconv.workers.launch.addresses import local_address_to  # noqa: PLC0415  (few need it)

    _, host, port = _parts(cluster)
    return local_address_to(host, port)


def _resources(text: str | None) -> list[tuple[str, float]]:
    found = []
    for one in (text or "").split(",") if text else ():
        name, _, amount = one.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if not name.strip() or not 0 < value < math.inf:
            raise UsageError(f"--cluster-resource: '{one}' is not of the form NAME=N")
        found.append((name.strip(), value))
    return found


def _installed(module: str) -> bool:
    import importlib.util  # noqa: PLC0415  (few need it)

    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
