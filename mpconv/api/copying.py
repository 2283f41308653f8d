"""What moves images, or reads all of one.

A job's worker processes are started by a fresh interpreter, so that it does not matter what threads and loops the
program has; it may be cancelled, and then nothing of it is left running, but its target is incomplete:
a file that was made for it is removed, unless a journal can go on with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from mpconv.coordination.signals import SignalScope, in_scope
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.jobs.collector import Collector
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


def _check_journal(journal: str | None, trusted: bool) -> None:
    if journal is not None and not trusted:
        from mpconv.journal import ownership  # noqa: PLC0415  (few need it)

        ownership.check(journal)


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
    local: LocalWorkers | None = None,
    observer: Collector | None = None,
) -> Copied:
    """Copy one image, or several one after the other. `source_format`: raw or qcow2; None: the header tells. `journal`:
    a file that lets `resume` go on after a crash; `trust_journal`: although others own it, or may write to it. `local`
    and `observer`: what a command has of its own.
    """
    from mpconv.jobs.copy import convert as job  # noqa: PLC0415  (as the other jobs: who needs one does without the rest)

    _check_journal(journal, trust_journal)
    chosen = whole(options or Options())
    places = [place_of(source, source_format) for source in _several(sources)]
    if observer is None:
        from mpconv import transports  # noqa: PLC0415  (the commands do without, here and below)
        from mpconv.options import validation  # noqa: PLC0415  (the commands do without, here and below)

        local_one = transports.is_local(target.url if isinstance(target, Place) else target)
        validation.check_copy(chosen, sources=len(places), local=local_one, journaled=journal is not None)
    to = target if isinstance(target, Place) else _target(target, chosen)
    heard = observer or Listener(on_progress, on_warning)
    began = time.monotonic()
    with _workers([*places], to, chosen, local) as workers:
        if journal is None:
            copy = job.convert(places, to, chosen, workers, heard, heard.warn)
        else:
            from mpconv.jobs.copy import journaled  # noqa: PLC0415  (few need it)

            copy = journaled.convert(places, to, chosen, workers, heard, heard.warn, journal)
        await _as_asked(copy, observer)
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
    local: LocalWorkers | None = None,
    observer: Collector | None = None,
    deployment: Deployment | None = None,
) -> Deployment:
    """Copy one image to several raw targets, read once. The result has an Outcome for each: `error` is None where it is
    complete. MpconvError when none can be, or nothing was begun. `deployment`: filled in, for who wants it then too.
    """
    from mpconv.jobs.copy import deploy as job  # noqa: PLC0415
    from mpconv.jobs.copy.targets import Outcome  # noqa: PLC0415

    _check_journal(journal, trust_journal)
    chosen = whole(options or Options())
    if observer is None:
        from mpconv.options import validation  # noqa: PLC0415

        if not targets:
            raise UsageError("a deployment needs a target")
        validation.check_deployment(chosen, journaled=journal is not None)
    places = [one if isinstance(one, Place) else _target(one, chosen) for one in targets]
    if deployment is None:
        outcomes = [Outcome(place) for place in places]
        deployment = job.Deployment(place_of(source, source_format), outcomes)
    heard = observer or Listener(on_progress, on_warning)
    with _workers([deployment.source, *places], None, chosen, local) as workers:
        if journal is None:
            copy = job.deploy(deployment, chosen, workers, heard)
        else:
            from mpconv.jobs.copy import redeploy  # noqa: PLC0415  (few need it)

            copy = redeploy.deploy(deployment, chosen, workers, heard, journal)
        await _as_asked(copy, observer)
    return deployment


async def resume(
    journal: str,
    effort: Effort | None = None,
    *,
    trust_journal: bool = False,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
    local: LocalWorkers | None = None,
    observer: Collector | None = None,
    deployment: Deployment | None = None,
) -> Resumed:
    """Go on with the copy or deployment whose journal it is, with the options it was begun with, but for `effort`.
    Fatal when its images are not what they were. iSCSI passwords: from LIBISCSI_CHAP_PASSWORD.
    """
    from mpconv.jobs.copy import manifest as courses  # noqa: PLC0415
    from mpconv.options.effort import Effort  # noqa: PLC0415

    if os.path.isdir(journal):
        raise UsageError(f"the journal '{journal}' is a fan-out's, and not one of a single copy: use resume_fan_out")
    _check_journal(journal, trust_journal)
    course, stored = courses.left_in(journal)
    chosen = effort or Effort()
    if observer is None:
        from mpconv.options import validation  # noqa: PLC0415

        idle = chosen.listening is not None
        validation.check_effort(
            chosen.requests, chosen.workers, rate=chosen.rate, retry_for=chosen.retry_for, idle=idle
        )
    heard = observer or Listener(on_progress, on_warning)
    began = time.monotonic()
    with _workers(course.opened, course.target, course.options, local) as workers:
        if course.aims:
            from mpconv.jobs.copy import redeploy  # noqa: PLC0415  (either is needed)

            deployment = deployment or redeploy.as_it_was_left(course, stored)
            worked = await _as_asked(redeploy.resume(deployment, journal, chosen, workers, heard), observer)
            return Resumed(result=deployment, was_finished=not worked)
        from mpconv.jobs.copy import journaled  # noqa: PLC0415

        worked = await _as_asked(journaled.resume(journal, chosen, workers, heard, heard.warn), observer)
    if not worked and observer is None:
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
    local: LocalWorkers | None = None,
    observer: Collector | None = None,
) -> Verdict:
    """Compare what two guests would read. The images are equal when the verdict's `differs_at` is None."""
    from mpconv.jobs import compare as job  # noqa: PLC0415

    places = (place_of(first, None), place_of(second, None))
    chosen = options or job.Options()
    if observer is None:
        from mpconv.options import validation  # noqa: PLC0415

        validation.check_effort(chosen.requests, chosen.workers, retry_for=chosen.retry_for)
    heard = observer or Listener(on_progress, on_warning)
    with _workers([*places], None, Options(), local) as workers:
        return await _as_asked(job.compare(places, chosen, workers, heard), observer)


async def checksum(
    image: Name,
    options: ChecksumOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
    local: LocalWorkers | None = None,
    observer: Collector | None = None,
) -> Checksum:
    """The digest of what a guest would read, as docs/digests.md defines it."""
    from mpconv.jobs import checksum as job  # noqa: PLC0415

    place = place_of(image, None)
    chosen = options or job.Options()
    if observer is None:
        from mpconv.options import validation  # noqa: PLC0415

        validation.check_effort(chosen.requests, chosen.workers, retry_for=chosen.retry_for)
    heard = observer or Listener(on_progress, on_warning)
    with _workers([place], None, Options(digest=True), local) as workers:
        return await _as_asked(job.checksum(place, chosen, workers, heard), observer)


def _several(sources: Name | Sequence[Name]) -> Sequence[Name]:
    if isinstance(sources, str | Place):
        return [sources]
    if not sources:
        raise UsageError("a copy needs a source")
    return sources


def _target(name: str, options: Options) -> Place:
    return Place(url=name, direct=options.cache.direct, format=options.target_format)


def whole(options: Options) -> Options:
    """A qcow2 target that is made, and of which nothing was said, is made as qemu-img does."""
    if options.target_format == "qcow2" and options.create and options.qcow2 is None:
        return replace(options, qcow2=Qcow2Options())
    return options


@contextlib.contextmanager
def _workers(
    sources: list[Place], target: Place | None, options: Options, local: LocalWorkers | None
) -> Iterator[LocalWorkers]:
    if options.listening is not None:
        from mpconv.protocol import gate  # noqa: PLC0415  (copies on one host do without)

        gate.check(options.listening)
    if local is not None:
        yield local
        return
    made = LocalWorkers.preloading(
        sources, target, compressing=options.compress, digesting=options.digests, spawned=True
    )
    with made:
        yield made


async def _as_asked(job: Coroutine[Any, Any, _Result], observer: Collector | None) -> _Result:
    """Signals reach a command's job, and nobody else's."""
    return await (job if observer is not None else in_scope(SignalScope(), job))
