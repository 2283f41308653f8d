"""A deployment that keeps a journal, and how it goes on in another run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType

from msgspec.structs import replace

from mpconv import transports
from mpconv.coordination.signals import interruptible
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy import manifest as courses
from mpconv.jobs.copy.convert import SETTLE_SECONDS
from mpconv.jobs.copy.deploy import Deployment, copy, deploy_once
from mpconv.jobs.copy.journaled import JournalObserver, anew, tell_again
from mpconv.jobs.copy.manifest import Manifest, TargetEntry
from mpconv.jobs.copy.target import Left, Target
from mpconv.jobs.copy.targets import Outcome, failed, open_all
from mpconv.journal.file import Journal
from mpconv.journal.recorder import Recorder
from mpconv.journal.records import Begun, State, Stored
from mpconv.model.errors import Fatal, MpconvError, StatusWithdrawn
from mpconv.model.place import Place
from mpconv.model.ranges import Ranges
from mpconv.options.copy import Options
from mpconv.options.effort import Effort


async def deploy(deployment: Deployment, options: Options, context: JobContext, path: str) -> None:
    """As deploy.deploy, with a journal at `path`."""
    courses.check_journal(path, [deployment.source, *(outcome.place for outcome in deployment.outcomes)], options)
    with contextlib.closing(Journal.for_new_copy(path)) as journal:
        noting = JournalObserver(context.observer)
        heard = context.heard_by(noting)
        passwords: dict[str, str] = {}

        async def begin(sources: list[Place], source: Image, targets: dict[int, Target], how: OpenOptions) -> Recorder:
            """What was made is durable before anything counts as done, and with it its size: so far it is zeros."""
            passwords.update(courses.passwords_of(sources))
            for number, target in list(targets.items()):
                try:
                    await target.store.retried(target.store.flush)
                except MpconvError as error:
                    failed(number, deployment.outcomes[number], error, noting)
                    await target.discard()
                    await targets.pop(number).close()
            journal.begin(await _described(deployment, sources, source, targets, options, how))
            noting.recorder = Recorder(journal, source.size, done=Ranges())
            return noting.recorder

        try:
            await deploy_once(deployment, options, heard, trusting=True, begin=begin)
        except StatusWithdrawn as error:
            context.observer.warn(anew(error))
            stored = journal.load()
            if stored is None:
                await deploy_once(deployment, options, heard, trusting=False, begin=begin)
            else:
                effort = Effort(listening=options.listening)
                await _anew_in_place(journal, stored, deployment, effort, context, passwords)


async def _described(
    deployment: Deployment,
    sources: list[Place],
    source: Image,
    targets: dict[int, Target],
    options: Options,
    how: OpenOptions,
) -> Begun:
    aims = [
        TargetEntry(
            place=courses.kept(outcome.place),
            zero_initialised=number in targets and targets[number].zero_initialised,
            why=None if number in targets else str(outcome.error),
        )
        for number, outcome in enumerate(deployment.outcomes)
    ]
    course = Manifest(
        sources=[courses.kept(one) for one in sources],
        target=aims[0].place,
        options=courses.without_secrets(replace(options, snapshot=None)),
        zero_initialised=False,
        keeps_backing=how.keeps_backing,
        trusting=how.trusting,
        aims=aims,
    )
    return Begun(
        source=", ".join(one.url for one in course.sources),
        target=", ".join(aim.place.url for aim in aims),
        size=source.size,
        course=course.encoded(),
        identities=[
            *[await courses.identity_of("source", store) for store in source.stores],
            *[await courses.identity_of(courses.role_of(n), targets[n].store) for n in sorted(targets)],
        ],
    )


def as_it_was_left(course: Manifest, stored: Stored) -> Deployment:
    """What the journal tells of each target. One that failed once stays failed: what was written without it is not
    written again.
    """
    happened = {one.kind: one.text for one in stored.happened}
    outcomes = []
    for number, aim in enumerate(course.aims):
        why = aim.why or happened.get(courses.drop_of(number))
        outcomes.append(Outcome(aim.place, None if why is None else Fatal(why)))
    return Deployment(course.sources[0], outcomes, stored.begun.size)


async def resume(deployment: Deployment, path: str, effort: Effort, context: JobContext) -> bool:
    """Go on with a deployment that is as it was left. False: it is finished already. Fatal when its source is not what
    it was; a target that is not is dropped.
    """
    with contextlib.closing(Journal.of_copy(path)) as journal:
        stored = courses.begun(journal.load(), path)
        if stored.state is State.FINISHED:
            context.observer.progress(stored.begun.size, stored.begun.size, stored.zeros)
            return False
        try:
            await _go_on(journal, stored, deployment, effort, context)
        except StatusWithdrawn as error:
            context.observer.warn(anew(error))
            await _anew_in_place(journal, stored, deployment, effort, context)
    return True


async def _anew_in_place(
    journal: Journal,
    stored: Stored,
    deployment: Deployment,
    effort: Effort,
    context: JobContext,
    passwords: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """As journaled's."""
    course = courses.decoded(stored, journal.path)
    journal.begin_anew(replace(course, trusting=False).encoded())
    begun = courses.begun(journal.load(), journal.path)
    await _go_on(journal, begun, deployment, effort, context, passwords)


async def _go_on(
    journal: Journal,
    stored: Stored,
    deployment: Deployment,
    effort: Effort,
    context: JobContext,
    passwords: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """It ends no sooner than what an earlier run sent can have landed: until then the targets are nobody else's."""
    course = courses.with_passwords(courses.decoded(stored, journal.path), passwords)
    options = effort.applied(course.options)
    noting = JournalObserver(context.observer)
    heard = context.heard_by(noting)
    how = heard.opening(options.retry_for, locked=not options.shared, trusting=course.trusting)
    tell = how.tell
    source, sources = await open_and_resolve(course.sources, how)
    targets: dict[int, Target] = {}
    try:
        await courses.check_sources(stored, source.stores)
        recorder = noting.recorder = Recorder(
            journal, source.size, done=stored.done, zeros=stored.zeros, digests=journal.digests(), kinds=stored.kinds
        )
        journal.take_up()
        tell_again(stored.happened, context.observer)
        left = {
            number: Left(zero_initialised=aim.zero_initialised, done=stored.done, places=0, parts={})
            for number, aim in enumerate(course.aims)
        }
        await open_all(deployment.outcomes, source, options, noting, tell, targets, left)
        for number, target in list(targets.items()):
            try:
                await courses.check_targets(stored, target.stores, courses.role_of(number))
            except MpconvError as error:
                failed(number, deployment.outcomes[number], error, noting)
                await targets.pop(number).close()
        if not targets:
            return
        loop = asyncio.get_running_loop()
        local_ones = all(transports.is_local(aim.place.url) for aim in course.aims)
        settled_at = loop.time() + (0 if local_ones else SETTLE_SECONDS)
        await copy(deployment, sources, source, targets, options, heard, tell, recorder)
        await interruptible(asyncio.sleep(settled_at - loop.time()))
    finally:
        await source.close()
        for target in targets.values():
            await target.close()
