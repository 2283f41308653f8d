"""The part that runs in a Dask worker: `mpconv worker` as a child process, which ends with it. Dask imports this there.

A Dask worker under a nanny is daemonic, so that multiprocessing would refuse it children; subprocess does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from os import getpid
from typing import Any

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
    that the host has; else `keys` is the content of one, and no text of a Call shows it. `shared_files`: as the
    option of `mpconv worker`.
    """

    run: str
    endpoint: str
    processes: int
    key_file: str | None
    keys: str
    shared_files: bool = False

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
    if call.shared_files:
        command.append("--shared-files=/")
    with _lock:
        if call.run in _over:
            return Outcome(0, "")
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as error:
            return Outcome(1, f"mpconv worker cannot be started: {error.strerror}")
        _running.setdefault(call.run, []).append(child)
    try:
        return _attended(child, call.keys)
    finally:
        child.terminate()  # unless it has ended
        with _lock:
            _running[call.run].remove(child)


def _attended(child: subprocess.Popen[bytes], keys: str) -> Outcome:
    assert child.stdin is not None and child.stderr is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(keys.encode())
    said = ""
    with _known_to_the_dask_worker(child):
        for line in child.stderr:
            said = line.decode("utf-8", "replace").strip()[:_LONGEST]
            with contextlib.suppress(OSError, ValueError):
                print(said, file=sys.stderr, flush=True)
        code = child.wait()
    return Outcome(code, said.removeprefix("mpconv: "))


async def end(run: str) -> None:
    """End the children of that run, and start none any more."""
    with _lock:
        _over.add(run)
        children = list(_running.get(run, ()))
    await _dismissed(children)


async def _dismissed(children: list[subprocess.Popen[bytes]]) -> None:
    """They end what they write, and flush it, if that takes no longer than it may."""
    for child in children:
        child.terminate()
    until = asyncio.get_running_loop().time() + _GRACE
    while left := _alive(children):
        if asyncio.get_running_loop().time() > until:
            for child in left:
                child.kill()
        await asyncio.sleep(_LOOK)


def _alive(children: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [child for child in children if child.poll() is None]


@contextlib.contextmanager
def _known_to_the_dask_worker(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """A Dask worker that is asked to close has the child leave first. One that closes because its scheduler is lost
    waits until the child has done its part: the copy needs no scheduler.
    """
    from distributed import get_worker  # noqa: PLC0415  (there, and there alone, it is loaded)
    from distributed.diagnostics.plugin import WorkerPlugin  # noqa: PLC0415

    class Ending(WorkerPlugin):
        async def teardown(self, worker: Any) -> None:
            if worker.batched_stream is not None and not worker.batched_stream.closed():
                await _dismissed([child])
            while _alive([child]):
                await asyncio.sleep(_LOOK)

    worker: Any = get_worker()  # type: ignore[no-untyped-call, unused-ignore]
    name = f"mpconv-worker-{child.pid}"
    worker.loop.add_callback(worker.plugin_add, Ending(), name)
    try:
        yield
    finally:
        worker.loop.add_callback(worker.plugin_remove, name)
