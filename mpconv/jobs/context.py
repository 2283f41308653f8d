"""What a job has from whoever starts it: a command, a program, a fan-out."""

from __future__ import annotations

from msgspec import Struct

from mpconv.coordination.observer import Observer
from mpconv.formats.opening import OpenOptions
from mpconv.model.place import Trust
from mpconv.transports.retry import Retry, Throttled
from mpconv.workers.launch.provider import WorkerProvider


class JobContext(Struct, frozen=True):
    """`workers`: where its worker processes come from. `observer`: who hears what becomes of it."""

    workers: WorkerProvider
    observer: Observer

    def heard_by(self, observer: Observer) -> JobContext:
        """The same workers, and another observer."""
        return JobContext(self.workers, observer)

    def opening(
        self,
        retry_for: float,
        *,
        locked: bool = False,
        trusting: bool = True,
        trust: Trust | None = None,
        keeps_backing: bool = False,
    ) -> OpenOptions:
        """How images are opened whose servers may be away for `retry_for` seconds, which the observer is told of."""
        return OpenOptions(
            locked=locked,
            trusting=trusting,
            trust=trust,
            keeps_backing=keeps_backing,
            retry=Retry(retry_for),
            tell=Throttled(self.observer.warn),
        )
