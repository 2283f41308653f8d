"""What a copy keeps in its journal besides what is done: how it goes on, and by what its images are known again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from mpconv import transports
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions
from mpconv.jobs.copy.target import Target
from mpconv.journal.records import Begun, Identity, Stored
from mpconv.model.errors import Fatal, UsageError
from mpconv.model.place import Place
from mpconv.options.copy import Options
from mpconv.transports.base import Transport
from mpconv.transports.redaction import has_user

_ANEW = "begin anew, with mpconv convert or deploy"


class TargetEntry(Struct, frozen=True, kw_only=True):
    """One of a deployment's targets. `zero_initialised`: where nothing was written it reads as zeros. `why`: it failed
    before anything was written.
    """

    place: Place
    zero_initialised: bool = False
    why: str | None = None


class Manifest(Struct, frozen=True, kw_only=True):
    """All that is needed to go on with a copy, without passwords. `sources`: with all that was found out about them, so
    that the same files are opened. `keeps_backing`: what the source leaves to its backing file is left to the target's.
    `trusting`: what the sources say of their holes is believed. `aims`: of a deployment all targets; `target` is the
    first one then.
    """

    sources: list[Place]
    target: Place
    options: Options
    zero_initialised: bool
    keeps_backing: bool
    trusting: bool = True
    aims: list[TargetEntry] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        """All images."""
        return self.opened if self.aims else [*self.sources, self.target]

    @property
    def opened(self) -> list[Place]:
        """All but the one target of a copy."""
        return [*self.sources, *(aim.place for aim in self.aims)]

    def encoded(self) -> str:
        """As text. Names that are no UTF-8 come through."""
        return json.dumps(msgspec.to_builtins(self))


def begun(stored: Stored | None, path: str) -> Stored:
    """What stands in a journal. Fatal when no copy began."""
    if stored is None:
        raise Fatal(f"no copy that the journal '{path}' tells of ever began: run the command that named it again")
    return stored


def decoded(stored: Stored, path: str) -> Manifest:
    """The course of a copy. Fatal when the journal's has another form."""
    try:
        return msgspec.convert(json.loads(stored.begun.course), Manifest)
    except (ValueError, msgspec.ValidationError) as error:
        raise Fatal(f"error while reading the journal '{path}': it is damaged ({error}): {_ANEW}") from error


def left_in(path: str) -> tuple[Manifest, Stored]:
    """A copy or deployment that may go on, by its journal. Fatal when none began, UsageError for want of a password."""
    from mpconv.journal.file import peek  # noqa: PLC0415  (SQLite: who only begins one opens it later)

    stored = begun(peek(path, whole=True)[0], path)
    course = decoded(stored, path)
    check_passwords(course)
    return course, stored


def check_journal(path: str, places: Iterable[Place], options: Options) -> None:
    """UsageError when such a copy can have no journal, or not that one."""
    for place in places:
        if transports.is_local(place.url) and _same_file(path, place.url.removeprefix("file:")):
            raise UsageError(f"the journal '{path}' is one of the images")
    made = options.qcow2
    for name in (made.backing_file, made.data_file) if made is not None else ():
        if name is not None and without_password(name) != name:
            why = "the name of a file that the image is made of has a password, which no journal may keep"
            raise UsageError(f"{why}: set LIBISCSI_CHAP_PASSWORD")


def _same_file(one: str, other: str) -> bool:
    if os.path.abspath(one) == os.path.abspath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


async def described(
    sources: Sequence[Place], place: Place, options: Options, source: Image, target: Target, how: OpenOptions
) -> Begun:
    """What is to be kept of a copy whose images are open."""
    fmt = "qcow2" if target.writer is not None else "raw"
    course = Manifest(
        sources=[kept(one) for one in sources],
        target=kept(place),
        options=without_secrets(replace(options, probe_target=False, target_format=fmt, snapshot=None)),
        zero_initialised=target.zero_initialised,
        keeps_backing=how.keeps_backing,
        trusting=how.trusting,
    )
    return Begun(
        source=", ".join(one.url for one in course.sources),
        target=course.target.url,
        size=source.size,
        course=course.encoded(),
        identities=[
            *[await identity_of("source", store) for store in source.stores],
            *[await identity_of("target", store) for store in target.stores],
        ],
    )


def without_secrets(options: Options) -> Options:
    """What a journal may keep of them: no keys and no passwords. Where workers of other hosts may join is said anew."""
    trust = options.trust
    if trust.backing is not None:
        trust = msgspec.structs.replace(trust, backing=[without_password(one) for one in trust.backing])
    return replace(options, listening=None, trust=trust)


async def identity_of(role: str, store: Transport) -> Identity:
    print_ = await store.fingerprint()
    return Identity(role, store.name, print_.same, print_.content)


async def check_sources(stored: Stored, stores: Sequence[Transport]) -> None:
    """Fatal when one of them is not what it was, or was changed."""
    await _check(stored, "source", stores)


async def check_targets(stored: Stored, stores: Sequence[Transport], role: str = "target") -> None:
    """Fatal when one of them is not what it was; its bytes may be others."""
    await _check(stored, role, stores)


def role_of(number: int) -> str:
    """Of a deployment's target, counted from 0: the role of its identity."""
    return f"target {number + 1}"


def drop_of(number: int) -> str:
    """Of a deployment's target, counted from 0: what is noted when it fails."""
    return f"{role_of(number)} dropped"


async def _check(stored: Stored, role: str, stores: Sequence[Transport]) -> None:
    known = [identity for identity in stored.begun.identities if identity.role == role]
    if len(known) != len(stores):
        was = f"the {role} consists of {len(stores)} files, and of {len(known)} when the copy began"
        raise Fatal(f"{was}: {_ANEW}")
    for identity, store in zip(known, stores, strict=True):
        now = await store.fingerprint()
        then, found = (identity.same, now.same)
        if role == "source":
            then, found = then | identity.content, found | now.content
        for what in then | found:
            old, new = then.get(what, "not known"), found.get(what, "not known")
            if old != new:
                told = f"{role} '{store.name}' is not the image it was: {what} {new} (it was {old})"
                raise Fatal(f"{told}: {_ANEW}")


def kept(place: Place) -> Place:
    """The same place wherever one stands, without passwords, and so the files that it is made of. What tells one store
    from another is kept apart, since some of it is another after a boot.
    """
    url = without_password(place.url)
    if transports.is_local(url):
        url = os.path.abspath(url.removeprefix("file://").removeprefix("file:"))
    return msgspec.structs.replace(
        place,
        url=url,
        marks={},
        beneath=without_password(place.beneath) if place.beneath is not None else None,
        backing=kept(place.backing) if place.backing is not None else None,
        data_file=kept(place.data_file) if place.data_file is not None else None,
    )


def without_password(url: str) -> str:
    """As `transports.redacted`; but the parameters of an NFS URL, which say where it lies, stay."""
    bare, mark, query = url.partition("?")
    if not bare.lower().startswith("nfs://"):
        return transports.redacted(url)
    return transports.redacted(bare) + mark + query


def with_passwords(course: Manifest, known: Mapping[str, str]) -> Manifest:
    """The same with the URLs that are `known`: without a password -> with it."""

    def whole(place: Place) -> Place:
        return msgspec.structs.replace(
            place,
            url=known.get(place.url, place.url),
            beneath=known.get(place.beneath, place.beneath) if place.beneath is not None else None,
            backing=whole(place.backing) if place.backing is not None else None,
            data_file=whole(place.data_file) if place.data_file is not None else None,
        )

    return replace(
        course,
        sources=[whole(place) for place in course.sources],
        target=whole(course.target),
        aims=[replace(aim, place=whole(aim.place)) for aim in course.aims],
    )


def passwords_of(places: Iterable[Place]) -> dict[str, str]:
    """What `with_passwords` wants to know of these places and of the files that they are made of."""
    known: dict[str, str] = {}
    for part in _with_parts(places):
        known[kept(part).url] = part.url
        if part.beneath is not None:
            known[without_password(part.beneath)] = part.beneath
    return {without: url for without, url in known.items() if without_password(url) != url}


def _with_parts(places: Iterable[Place]) -> Iterator[Place]:
    """Also the files that they are made of."""
    left = list(places)
    while left:
        place = left.pop()
        yield place
        left += [below for below in (place.backing, place.data_file) if below is not None]


def check_passwords(course: Manifest) -> None:
    """UsageError when one is needed that is not in the environment."""
    for place in course.places:
        check_password_of(place)


def check_password_of(place: Place) -> None:
    """The same, of one image."""
    for part in _with_parts([place]):
        if has_user(part.url) and not os.environ.get("LIBISCSI_CHAP_PASSWORD"):
            raise UsageError(f"no journal keeps a password: set LIBISCSI_CHAP_PASSWORD for '{part.url}'")
