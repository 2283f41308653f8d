"""Key files, and the options for workers of other hosts."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mpconv.cli.options.cluster import check_cluster, cluster_options, endpoint_for
from mpconv.cli.options.types import Duration
from mpconv.model.errors import UsageError
from mpconv.protocol.keys import Keys, Listening, check_endpoint, parse
from mpconv.protocol.messages import MAX_FENCE

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_FENCE = 10.0
_LEAST_FENCE = 0.5
_LARGEST = 4096


def listen_options(command: _Decorated) -> _Decorated:
    """--listen, --key-file, --shared-files, --fence, and those of a cluster."""
    for option in reversed(
        (
            click.option("--listen", metavar="tcp://ADDR:PORT", help="Let mpconv worker on other hosts take part."),
            key_file_option,
            click.option("--shared-files", is_flag=True, help="With --listen: files have the same names on all hosts."),
            click.option(
                "--fence",
                type=Duration(),
                default=_FENCE,
                metavar="TIME",
                help="With --listen: a worker that is cut off stops after so long; default 10s.",
            ),
        )
    ):
        command = option(command)
    return cluster_options(command)


def key_file_option(command: _Decorated) -> _Decorated:
    """--key-file."""
    return click.option("--key-file", metavar="FILE", help="The keys, made by mpconv keygen.")(command)


def listening_of(options: dict[str, Any]) -> Listening | None:
    """Where workers of other hosts may connect; None: nowhere."""
    check_cluster(options)
    if options["listen"] is None and options["cluster"] is None:
        if options["workers"] == 0:
            raise UsageError("--workers 0 requires --listen or --cluster: nobody would copy")
        for given, name in ((options["key_file"], "--key-file"), (options["shared_files"], "--shared-files")):
            if given:
                raise UsageError(f"{name} requires --listen or --cluster")
        return None
    if not _LEAST_FENCE <= options["fence"] <= MAX_FENCE:
        raise UsageError(f"--fence must be between {_LEAST_FENCE:g} and {MAX_FENCE:g} seconds")
    made = options["cluster"] is not None and options["key_file"] is None
    keys = new_keys() if made else keys_of(options)
    if not keys.coordinator_secret:
        why = "--listen needs the one that has the coordinator's secret"
        raise UsageError(f"the key file '{options['key_file']}' is for workers alone: {why}")
    endpoint = check_endpoint(options["listen"] or endpoint_for(options["cluster"]))
    return Listening(endpoint=endpoint, keys=keys, fence=options["fence"], shared_files=options["shared_files"])


def keys_of(options: dict[str, Any]) -> Keys:
    """Those of the file that is named. UsageError when there is none, or others may read it."""
    name = options["key_file"]
    if name is None:
        raise UsageError("a key file is needed: --key-file FILE, made by mpconv keygen FILE")
    try:
        with open(name, "rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(_LARGEST)
    except OSError as error:
        why = f"Could not open key file '{name}': {os.strerror(error.errno or 0)}"
        fix = f": mpconv keygen {shlex.quote(name)} makes one" if error.errno == errno.ENOENT else ""
        raise UsageError(why + fix) from None
    keys = parse(content.decode("ascii", "replace"), name)
    if found.st_uid not in (0, os.geteuid()):
        raise UsageError(
            f"the key file '{name}' is another user's ({found.st_uid}): mpconv keygen makes one of your own"
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        bits = f"{stat.S_IMODE(found.st_mode):04o}"
        raise UsageError(f"the key file '{name}' is open to others (mode {bits}): chmod 600 {shlex.quote(name)}")
    return keys


def new_keys() -> Keys:
    """Nobody has them yet."""
    import zmq  # noqa: PLC0415  (--help does without)

    coordinator, worker = zmq.curve_keypair(), zmq.curve_keypair()
    return Keys(
        coordinator_public=coordinator[0].decode(),
        coordinator_secret=coordinator[1].decode(),
        worker_public=worker[0].decode(),
        worker_secret=worker[1].decode(),
    )


def write_keys(name: str, keys: Keys) -> None:
    """Into a file that does not exist yet, for its owner alone."""
    try:
        with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(keys.text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = f"Could not make key file '{name}': {os.strerror(error.errno or 0)}"
        fix = ": keys in use are not overwritten, name another file" if error.errno == errno.EEXIST else ""
        raise UsageError(why + fix) from None
