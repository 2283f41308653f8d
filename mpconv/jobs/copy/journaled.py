"""A copy that keeps a journal, and how it goes on in another run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec.structs import replace

from mpconv import transports
from mpconv.coordination.observer import ForwardingObserver, Observer
from mpconv.coordination.signals import interruptible
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy import manifest as courses
from mpconv.jobs.copy.convert import SETTLE_SECONDS, copy_once, open_target, run, settled
from mpconv.jobs.copy.manifest import Manifest
from mpconv.jobs.copy.target import Left, Target
from mpconv.journal.file import Journal
from mpconv.journal.recorder import Entries, Recorder
from mpconv.journal.records import Happening, State, Stored
from mpconv.model.errors import Fatal, NoSuchImage, StatusWithdrawn
from mpconv.model.place import Place
from mpconv.model.ranges import Ranges
from mpconv.options.copy import Options
from mpconv.options.effort import Effort
from mpconv.transports.retry import Tell


async def convert(
    sources: list[Place],
    target: Place,
    options: Options,
    context: JobContext,
    path: str,
) -> None:
    """As convert.convert, with a journal at `path`."""
    sources, target, options = settled(sources, target, options)
    courses.check_journal(path, [*sources, target], options)
    with contextlib.closing(Journal.for_new_copy(path)) as journal:
        noting = JournalObserver(context.observer)
        heard = context.heard_by(noting)
        passwords = courses.passwords_of([*sources, target])

        async def begin(found: list[Place], source: Image, made: Target, how: OpenOptions) -> Recorder:
            """What was made is durable before anything counts as done, and with it its size: so far it is zeros."""
            passwords.update(courses.passwords_of([*found, made.place]))
            for store in made.stores:
                await store.retried(store.flush)
            journal.begin(await courses.described(found, target, options, source, made, how))
            noting.recorder = Recorder(journal, source.size, done=Ranges(), entries=_entries(made))
            return noting.recorder

        try:
            await copy_once(sources, target, options, heard, trusting=True, begin=begin)
        except StatusWithdrawn as error:
            context.observer.warn(anew(error))
            stored = journal.load()
            if stored is None:
                await copy_once(sources, target, options, heard, trusting=False, begin=begin)
            else:
                effort = Effort(listening=options.listening)
                await _anew_in_place(journal, stored, effort, context, passwords)


async def resume(
    path: str,
    effort: Effort,
    context: JobContext,
    passwords: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Go on with a copy. False: it is finished already. Fatal when its images are not what they were. `passwords`: URLs
    with theirs, by the URLs without.
    """
    with contextlib.closing(Journal.of_copy(path)) as journal:
        stored = courses.begun(journal.load(), path)
        if stored.state is State.FINISHED:
            context.observer.progress(stored.begun.size, stored.begun.size, stored.zeros)
            return False
        try:
            await _go_on(journal, stored, effort, context, passwords)
        except StatusWithdrawn as error:
            context.observer.warn(anew(error))
            await _anew_in_place(journal, stored, effort, context, passwords)
    return True


def anew(error: StatusWithdrawn) -> str:
    return f"{error}: the copy begins anew and reads everything"


async def _anew_in_place(
    journal: Journal,
    stored: Stored,
    effort: Effort,
    context: JobContext,
    passwords: Mapping[str, str],
) -> None:
    """What was done may be wrong, since the source said zeros where it has data. All of it is read and written again,
    into the same target: where the source does have zeros, nothing else was ever written.
    """
    course = courses.decoded(stored, journal.path)
    journal.begin_anew(replace(course, trusting=False).encoded())
    await _go_on(journal, courses.begun(journal.load(), journal.path), effort, context, passwords)


async def _go_on(
    journal: Journal,
    stored: Stored,
    effort: Effort,
    context: JobContext,
    passwords: Mapping[str, str],
) -> None:
    """It ends no sooner than what an earlier run sent can have landed: until then the target is nobody else's."""
    course = courses.with_passwords(courses.decoded(stored, journal.path), passwords)
    options = effort.applied(course.options)
    noting = JournalObserver(context.observer)
    heard = context.heard_by(noting)
    how = heard.opening(
        options.retry_for, locked=not options.shared, trusting=course.trusting, keeps_backing=course.keeps_backing
    )
    tell = how.tell
    source, sources = await open_and_resolve(course.sources, how)
    target: Target | None = None
    try:
        await courses.check_sources(stored, source.stores)
        target = await _as_it_was_left(journal, stored, course, options, source, tell)
        recorder = noting.recorder = Recorder(
            journal,
            source.size,
            done=stored.done,
            zeros=stored.zeros,
            places=stored.places,
            digests=journal.digests(),
            entries=_entries(target),
            kinds=stored.kinds,
        )
        journal.take_up()
        tell_again(stored.happened, context.observer)
        loop = asyncio.get_running_loop()
        settled_at = loop.time() + (0 if transports.is_local(course.target.url) else SETTLE_SECONDS)
        await run(sources, source, course.target, target, options, heard, tell, recorder)
        await interruptible(asyncio.sleep(settled_at - loop.time()))
    finally:
        await source.close()
        if target is not None:
            await target.close()


async def _as_it_was_left(
    journal: Journal, stored: Stored, course: Manifest, options: Options, source: Image, tell: Tell
) -> Target:
    left = Left(
        zero_initialised=course.zero_initialised,
        done=stored.done,
        places=stored.places,
        parts=journal.entries(),
    )
    try:
        target = await open_target(source, course.target, options, tell, left)
    except NoSuchImage as error:
        error.why += ": what was copied is gone with it; begin anew, with mpconv convert"
        raise
    try:
        await courses.check_targets(stored, target.stores)
        if target.whole and stored.bytes_done < source.size:
            name = target.store.name
            why = "it is complete, and the journal's is not: see what it is, then begin anew with mpconv convert"
            raise Fatal(f"target '{name}' is not the image it was: {why}")
    except BaseException:
        await target.close()
        raise
    return target


def _entries(target: Target) -> Entries | None:
    if target.writer is None:
        return None
    from mpconv.formats.qcow2.saved_entries import KeptEntries  # noqa: PLC0415  (raw copies do without)

    return KeptEntries(target.writer.layout)


def tell_again(happened: Iterable[Happening], observer: Observer) -> None:
    """What earlier runs lost belongs to this one's report."""
    for one in happened:
        if one.kind == "lost" and one.start is not None and one.length is not None:
            observer.lost([(one.start, one.length)], one.text)


def tell_of_the_end(stored: Stored, observer: Observer) -> None:
    """The same of a copy that is finished, with its digest and what was verified."""
    tell_again(stored.happened, observer)
    for one in stored.happened:
        if one.kind == "digest":
            observer.digest(one.text, stored.begun.target)
        elif one.kind == "verified":
            observer.verified(int(one.text.partition(" ")[0]), stored.begun.size)


class JournalObserver(ForwardingObserver):
    """Tells the journal, once there is one, what another observer hears too, as far as it is worth keeping."""

    def __init__(self, inner: Observer) -> None:
        super().__init__(inner)
        self._writing = True
        self.recorder: Recorder | None = None

    def progress(self, done: int, total: int, zeros: int) -> None:
        if self.recorder is not None and self._writing:
            self.recorder.written = done
        super().progress(done, total, zeros)

    def phase(self, name: str) -> None:
        self._writing = name in ("copy", "flush")
        super().phase(name)

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        if self.recorder is not None:
            self.recorder.happened("lost", why, ranges)
        super().lost(ranges, why)

    def digest(self, text: str, image: str) -> None:
        if self.recorder is not None:
            self.recorder.happened("digest", text)
        super().digest(text, image)

    def verified(self, checked: int, size: int) -> None:
        if self.recorder is not None:
            self.recorder.happened("verified", f"{checked} of {size} bytes")
        super().verified(checked, size)

    def dropped(self, number: int, image: str, why: str) -> None:
        if self.recorder is not None:
            self.recorder.happened(courses.drop_of(number), why)
        super().dropped(number, image, why)

    def warn(self, text: str) -> None:
        if self.recorder is not None:
            self.recorder.happened("warning", text)
        super().warn(text)
