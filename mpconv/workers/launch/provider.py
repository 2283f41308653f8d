"""Where a coordinator has its workers from: what it asks for, and what it may be asked for in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mpconv.protocol.gate import Door

Ended = Callable[[int, int | None], None]
"""Called with a worker's pid and exit code, -N when signal N ended it; None: the nursery is gone, so that nobody knows
how the worker ended, or when."""


class PoolClient(Protocol):
    """A coordinator that runs, as who supplies its workers sees it."""

    @property
    def guests(self) -> int:
        """How many workers of other hosts it has."""

    @property
    def hiring(self) -> bool:
        """Whether more could do anything for it."""

    def add_workers(self, count: int) -> None:
        """So many more worker processes of this host are at its disposal."""

    def limit(self, per_second: int, *, refunds: bool) -> None:
        """From now on it may have so many bytes a second, 0 for no limit. `refunds`: as Rate's."""

    def hear(self, frames: list[bytes]) -> None:
        """A frame from a worker of another host, after its name."""

    def reaped(self, host: str, numbers: list[int]) -> None:
        """These workers of another host are known to have ended."""


class WorkerProvider:
    """Workers for one coordinator at a time. This part of it is for one that has all of them."""

    def start(self, count: int, endpoint: str, ended: Ended) -> list[int]:
        """Start `count` worker processes, beside those that run; their pids. `ended` is called when one of them is
        reaped. Raises WorkerLost when one cannot be started.
        """
        raise NotImplementedError

    def kill(self, pid: int) -> None:
        """End a worker at once; `ended` is called when it is reaped."""
        raise NotImplementedError

    async def stop(self, grace: float) -> None:
        """Wait `grace` seconds for the workers to end, then kill them. None is left afterwards."""
        raise NotImplementedError

    def share(self, most: int, *, guests: bool) -> int:
        """With how many processes of this host a coordinator begins that can use so many at most. `guests`: others may
        come from other hosts.
        """
        return most

    def attach(self, employer: PoolClient, *, guests: bool) -> Door | None:
        """A coordinator begins. `guests`: workers of other hosts may take part, and the door through which they come,
        unless it is to open one itself.
        """
        return None
