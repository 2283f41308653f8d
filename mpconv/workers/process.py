"""Entry of a worker process."""

from __future__ import annotations

import asyncio
import signal
import sys

from multiprocess import parent_process

from mpconv.workers.worker import Worker


def run(endpoint: str) -> None:
    """Serve the coordinator at `endpoint`. Ctrl-C is the coordinator's business: it says Bye."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    sentinel = parent.sentinel if parent is not None else None
    try:
        asyncio.run(Worker(endpoint, sentinel).serve())
    except KeyboardInterrupt:
        sys.exit(1)
