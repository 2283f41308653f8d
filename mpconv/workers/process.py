"""Entry of a worker process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable

from msgspec import Struct

from mpconv.model.units import MiB
from mpconv.workers.worker import Worker

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 32 * MiB
HEARSAY = 0.5
"""Seconds after which the nursery has got a signal too, if all were to get it."""


class Ends(Struct, frozen=True):
    """Signals that come blocked. `told`: whether all processes have got one."""

    numbers: set[signal.Signals]
    told: Callable[[], bool]

    def begin(self) -> None:
        """On the running loop: one that came to this process alone ends it, as it would by default."""
        loop = asyncio.get_running_loop()
        for number in self.numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, loop.call_later, HEARSAY, self._end, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.numbers)

    def _end(self, number: int) -> None:
        if not self.told():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _keep_memory() -> None:
    """libnfs takes a megabyte from the heap for every answer: have glibc keep it, not map and fault it anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def run(endpoint: str, lifeline: int, ends: Ends) -> int:
    """Serve the coordinator at `endpoint`, until `lifeline`, a descriptor, is readable: then its process is gone. The
    exit code. `endpoint` is an ipc: one, or the text of a Summons to another host.

    Ctrl-C is the coordinator's business, as are `ends` where all get them: it says Bye.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGUSR1))
    _keep_memory()
    if endpoint.startswith("{"):
        from mpconv.workers.remote_worker import RemoteWorker, Summons  # noqa: PLC0415  (workers on one host do without)

        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its host hears it, and has it leave
        remote = RemoteWorker(Summons.parsed(endpoint), lifeline)
        asyncio.run(remote.serve())
        return remote.code

    async def serve() -> None:
        ends.begin()
        await Worker(endpoint, lifeline).serve()

    asyncio.run(serve())
    return 0
