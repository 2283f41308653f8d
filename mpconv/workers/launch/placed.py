"""The part that runs in a Dask worker: `mpconv worker` as a child process, which ends with it. Dask imports this there.

A Dask worker under a nanny is daemonic, so that multiprocessing would refuse it children; subprocess does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from os import getpid

import msgspec

_WAIT = 30.0
"""Seconds for which a child looks for its coordinator, which is there when it is started."""
_GRACE = 10.0
"""Seconds that a child may take to end and flush what it writes, until it is killed."""
_LOOK = 0.05
_LONGEST = 500
_running: dict[str, list[subprocess.Popen[bytes]]] = {}
_over: set[str] = set()
_lock = threading.Lock()


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is asked for. `run`: by what these workers are ended; `processes`: 0 for one a core. `key_file`: one
    that the host has; else `keys` is the content of one, and no text of a Call shows it.
    """

    run: str
    endpoint: str
    processes: int
    key_file: str | None
    keys: str

    def __repr__(self) -> str:
        return f"Call({self.endpoint})"


class Outcome(msgspec.Struct, frozen=True):
    """A child's exit code, -N for signal N, and the last thing it said."""

    code: int
    said: str


def serve(call: Call) -> Outcome:
    """Until the child ends. It holds the thread that Dask gave it, whose end would end the child too."""
    command = [sys.executable, "-P", "-m", "mpconv", "worker", "--connect", call.endpoint, "--wait", f"{_WAIT:g}"]
    command += ["--parent", str(getpid()), "--key-file", call.key_file or "/dev/stdin"]
    if call.processes:
        command += ["--workers", str(call.processes)]
    with _lock:
        if call.run in _over:
            return Outcome(0, "")
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as error:
            return Outcome(1, f"mpconv worker cannot be started: {error.strerror}")
        _running.setdefault(call.run, []).append(child)
    assert child.stdin is not None and child.stderr is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(call.keys.encode())
    said = ""
    for line in child.stderr:
        said = line.decode("utf-8", "replace").strip()[:_LONGEST]
        print(said, file=sys.stderr, flush=True)
    code = child.wait()
    with _lock:
        _running[call.run].remove(child)
    return Outcome(code, said.removeprefix("mpconv: "))


async def end(run: str) -> None:
    """End the children of that run, and start none any more. They end what they write first, if that takes no longer
    than it may.
    """
    with _lock:
        _over.add(run)
        children = list(_running.get(run, ()))
    for child in children:
        child.terminate()
    until = asyncio.get_running_loop().time() + _GRACE
    while left := [child for child in children if child.poll() is None]:
        if asyncio.get_running_loop().time() > until:
            for child in left:
                child.kill()
        await asyncio.sleep(_LOOK)
