"""What moves images, or reads all of one.

A job's worker processes are started by a fresh interpreter, so that it does not matter what threads and loops the
program has; it may be cancelled, and then nothing of it is left running, but its target is incomplete:
a file that was made for it is removed, unless a journal can go on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from mpconv.coordination.signals import SignalScope, in_scope
from mpconv.jobs.collector import Collector
from mpconv.jobs.context import JobContext
from mpconv.model.errors import UsageError
from mpconv.model.place import Name, OnWarning, Place, place_of
from mpconv.options.copy import Options
from mpconv.ui.terminal.progress import Progress
from mpconv.workers.launch.local import LocalWorkers

if TYPE_CHECKING:
    from mpconv.jobs.checksum import Checksum
    from mpconv.jobs.checksum import Options as ChecksumOptions
    from mpconv.jobs.compare import Options as CompareOptions
    from mpconv.jobs.compare import Verdict
    from mpconv.jobs.copy.deploy import Deployment
    from mpconv.options.effort import Effort

OnProgress = Callable[[Progress], None]

_Result = TypeVar("_Result")


class Lost(Struct, frozen=True):
    """`length` bytes from `start` of the source could not be read and became zeros, as `salvage` has it."""

    start: int
    length: int
    why: str


class Copied(Struct, frozen=True, kw_only=True):
    """A copy that is complete and, unless the cache mode is unsafe, durable. `size` and `zeros`, what of it is zero, in
    bytes; `seconds` that it took; `verified`: bytes that were read back and are the source's.
    """

    size: int
    zeros: int
    seconds: float
    digest: str | None = None
    verified: int | None = None
    lost: list[Lost] = []


class Resumed(Struct, frozen=True, kw_only=True):
    """What became of a copy that went on. `result`: as convert's or deploy's. `was_finished`: nothing was left to be
    done; of a deployment the journal does not tell the digest and what was verified then.
    """

    result: Copied | Deployment
    was_finished: bool


class Listener(Collector):
    """Passes on to callbacks what a job tells. What they raise ends the job."""

    def __init__(self, on_progress: OnProgress | None, on_warning: OnWarning | None) -> None:
        super().__init__()
        self._on_progress = on_progress
        self._on_warning = on_warning

    def progress(self, done: int, total: int, zeros: int) -> None:
        super().progress(done, total, zeros)
        self._tell()

    def phase(self, name: str) -> None:
        super().phase(name)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(self.done, self.total, self.zeros, self.phase_now))

    def dropped(self, number: int, image: str, why: str) -> None:
        self.warn(f"'{image}' is dropped: {why}")

    def warn(self, text: str) -> None:
        if self._on_warning is not None:
            self._on_warning(text)


async def convert(
    sources: Name | Sequence[Name],
    target: Name,
    options: Options | None = None,
    *,
    source_format: str | None = None,
    journal: str | None = None,
    trust_journal: bool = False,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Copied:
    """Copy one image, or several one after the other. `source_format`: raw or qcow2; None: the header tells. `journal`:
    a file that lets `resume` go on after a crash; `trust_journal`: although others own it, or may write to it.
    """
    from mpconv import transports  # noqa: PLC0415  (as below: who needs one job does without the rest)
    from mpconv.jobs.copy import start  # noqa: PLC0415
    from mpconv.options import validation  # noqa: PLC0415

    chosen = (options or Options()).whole()
    places = [place_of(source, source_format) for source in _several(sources)]
    local = transports.is_local(target.url if isinstance(target, Place) else target)
    validation.check_copy(chosen, sources=len(places), local=local, journaled=journal is not None)
    to = target if isinstance(target, Place) else _target(target, chosen)
    heard = Listener(on_progress, on_warning)
    began = time.monotonic()
    with _workers([*places], to, chosen) as workers:
        await _alone(
            start.convert(places, to, chosen, JobContext(workers, heard), journal=journal, trusted=trust_journal)
        )
    return _copied(heard, began)


async def deploy(
    source: Name,
    targets: Sequence[Name],
    options: Options | None = None,
    *,
    source_format: str | None = None,
    journal: str | None = None,
    trust_journal: bool = False,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Deployment:
    """Copy one image to several raw targets, read once. The result has an Outcome for each: `error` is None where it is
    complete. MpconvError when none can be, or nothing was begun.
    """
    from mpconv.jobs.copy import start  # noqa: PLC0415
    from mpconv.jobs.copy.deploy import Deployment  # noqa: PLC0415
    from mpconv.jobs.copy.targets import Outcome  # noqa: PLC0415
    from mpconv.options import validation  # noqa: PLC0415

    chosen = (options or Options()).whole()
    if not targets:
        raise UsageError("a deployment needs a target")
    validation.check_deployment(chosen, journaled=journal is not None)
    places = [one if isinstance(one, Place) else _target(one, chosen) for one in targets]
    deployment = Deployment(place_of(source, source_format), [Outcome(place) for place in places])
    heard = Listener(on_progress, on_warning)
    with _workers([deployment.source, *places], None, chosen) as workers:
        await _alone(
            start.deploy(deployment, chosen, JobContext(workers, heard), journal=journal, trusted=trust_journal)
        )
    return deployment


async def resume(
    journal: str,
    effort: Effort | None = None,
    *,
    trust_journal: bool = False,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Resumed:
    """Go on with the copy or deployment whose journal it is, with the options it was begun with, but for `effort`.
    Fatal when its images are not what they were. iSCSI passwords: from LIBISCSI_CHAP_PASSWORD.
    """
    from mpconv.jobs.copy import journaled, redeploy, start  # noqa: PLC0415
    from mpconv.jobs.copy import manifest as manifests  # noqa: PLC0415
    from mpconv.options import validation  # noqa: PLC0415
    from mpconv.options.effort import Effort  # noqa: PLC0415

    if os.path.isdir(journal):
        raise UsageError(f"the journal '{journal}' is a fan-out's, and not one of a single copy: use resume_fan_out")
    start.check_journal(journal, trust_journal)
    manifest, stored = manifests.left_in(journal)
    chosen = effort or Effort()
    idle = chosen.listening is not None
    validation.check_effort(chosen.requests, chosen.workers, rate=chosen.rate, retry_for=chosen.retry_for, idle=idle)
    heard = Listener(on_progress, on_warning)
    began = time.monotonic()
    deployment = redeploy.as_it_was_left(manifest, stored) if manifest.aims else None
    with _workers(manifest.opened, manifest.target, manifest.options) as workers:
        worked = await _alone(start.resume(journal, chosen, JobContext(workers, heard), deployment))
    if deployment is not None:
        return Resumed(result=deployment, was_finished=not worked)
    if not worked:
        journaled.tell_of_the_end(stored, heard)
    return Resumed(result=_copied(heard, began), was_finished=not worked)


def _copied(heard: Collector, began: float) -> Copied:
    return Copied(
        size=heard.total,
        zeros=heard.zeros,
        seconds=time.monotonic() - began,
        digest=heard.found[0] if heard.found is not None else None,
        verified=heard.checked[0] if heard.checked is not None else None,
        lost=[Lost(*one) for one in heard.lost_ranges()],
    )


async def compare(
    first: Name,
    second: Name,
    options: CompareOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Verdict:
    """Compare what two guests would read. The images are equal when the verdict's `differs_at` is None."""
    from mpconv.jobs import compare as job  # noqa: PLC0415
    from mpconv.options import validation  # noqa: PLC0415

    places = (place_of(first, None), place_of(second, None))
    chosen = options or job.Options()
    validation.check_effort(chosen.requests, chosen.workers, retry_for=chosen.retry_for)
    heard = Listener(on_progress, on_warning)
    with _workers([*places], None, Options()) as workers:
        return await _alone(job.compare(places, chosen, JobContext(workers, heard)))


async def checksum(
    image: Name,
    options: ChecksumOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Checksum:
    """The digest of what a guest would read, as docs/digests.md defines it."""
    from mpconv.jobs import checksum as job  # noqa: PLC0415
    from mpconv.options import validation  # noqa: PLC0415

    place = place_of(image, None)
    chosen = options or job.Options()
    validation.check_effort(chosen.requests, chosen.workers, retry_for=chosen.retry_for)
    heard = Listener(on_progress, on_warning)
    with _workers([place], None, Options(digest=True)) as workers:
        return await _alone(job.checksum(place, chosen, JobContext(workers, heard)))


def _several(sources: Name | Sequence[Name]) -> Sequence[Name]:
    if isinstance(sources, str | Place):
        return [sources]
    if not sources:
        raise UsageError("a copy needs a source")
    return sources


def _target(name: str, options: Options) -> Place:
    return Place(url=name, direct=options.cache.direct, format=options.target_format)


def _workers(sources: list[Place], target: Place | None, options: Options) -> LocalWorkers:
    return LocalWorkers.preloading(
        sources, target, compressing=options.compress, digesting=options.digests, spawned=True
    )


async def _alone(job: Coroutine[Any, Any, _Result]) -> _Result:
    """Signals reach the job, and nobody else's."""
    return await in_scope(SignalScope(), job)
