"""Entry of a worker process."""

from __future__ import annotations

import asyncio
import ctypes
import signal

from mpconv.units import MiB
from mpconv.workers.worker import Worker

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 32 * MiB


def _keep_memory() -> None:
    """libnfs takes a megabyte from the heap for every answer: have glibc keep it, not map and fault it anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def run(endpoint: str, lifeline: int) -> int:
    """Serve the coordinator at `endpoint`, until `lifeline`, a descriptor, is readable: then its process is gone. The
    exit code. `endpoint` is an ipc: one, or the text of a Summons to another host.

    Ctrl-C is the coordinator's business: it says Bye.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _keep_memory()
    if endpoint.startswith("{"):
        from mpconv.workers.remote import RemoteWorker, Summons  # noqa: PLC0415  (workers on one host do without)

        remote = RemoteWorker(Summons.parsed(endpoint), lifeline)
        asyncio.run(remote.serve())
        return remote.code
    asyncio.run(Worker(endpoint, lifeline).serve())
    return 0
