"""Images of different jobs that are one under two names: what one job writes no other one may write or read.

All of them are opened once before any job begins, a few at a time, and none of them longer than it takes to see what it
is. One that is not there yet, or does not answer, keeps nobody waiting: its own job will say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from msgspec import Struct

from mpconv import transports
from mpconv.formats.opening import OpenOptions, open_and_resolve
from mpconv.formats.qcow2.image import read_metadata
from mpconv.formats.trust import data_place
from mpconv.jobs.fanout.plan import Problem
from mpconv.jobs.fanout.spec import Spec, server_of
from mpconv.jobs.fanout.validation import DATA_FILE, TARGET, written_by
from mpconv.model.errors import ImageError, MpconvError, NoSuchImage
from mpconv.model.place import Place
from mpconv.transports.base import Access, Transport
from mpconv.transports.identity import ALLOW, Facts, Verdict, alike_at_most, suspects
from mpconv.transports.sameness import verdict_of

_AT_ONCE = 8
_SECONDS = 5.0
"""For each image."""
_SOURCE = "source"


class _Found(Struct):
    """One store of a job's image, and what it is to the job; `place`: by which it can be opened again."""

    spec: Spec
    what: str
    place: Place
    name: str
    facts: Facts

    @property
    def written(self) -> bool:
        """By the job."""
        return self.what != _SOURCE


class Encounters:
    """Those of some jobs. `written`: the names of those that are done: only what they wrote is of interest."""

    def __init__(self, specs: Sequence[Spec], written: Collection[str] = ()) -> None:
        self._specs = specs
        self._written = written
        self._look = _Look()
        self._new: set[str] = set()
        self._known: dict[str, list[_Found]] = {}

    async def foreseen(self) -> list[Problem]:
        """What is wrong with these jobs side by side, as far as their images are there."""
        if len(self._specs) < 2:
            return []
        asked = [self._look.at(spec, read=spec.name not in self._written) for spec in self._specs]
        found = [one for some in await asyncio.gather(*asked) for one in some]
        for spec in self._specs:
            there = [one for one in found if one.spec is spec and one.written]
            if len(there) < len(written_by(spec)):
                self._new.add(spec.name)
            else:
                self._known[spec.name] = there
        return await _problems(found)

    async def met(self, spec: Spec, begun: Sequence[Spec], *, done: bool) -> Problem | None:
        """What is wrong with a job beside those that have begun, where one of its images was not there at first: before
        it begins, and when it is `done`, since others may have made theirs meanwhile. Of those that are done too only
        the ones that may be the same are looked at again: a plan may have hundreds.
        """
        if spec.name not in self._new or not begun:
            return None
        own = await self._look.at(spec, read=False)
        if done:
            self._known[spec.name] = own
        asked = (self._look.at(one, read=False) for one in begun if self._may_be(one, own))
        others = await asyncio.gather(*asked)
        for problem in await _problems([*(one for some in others for one in some), *own], of=spec):
            return problem
        return None

    def _may_be(self, spec: Spec, own: Sequence[_Found]) -> bool:
        """Whether one of a job's images may be one of these, by what they were when they were looked at last: times and
        size of a file are others since, its number is not.
        """
        known = self._known.get(spec.name)
        if known is None:
            return True
        return any(suspects([one.facts, other.facts]) for one in own for other in known)


async def _problems(found: Sequence[_Found], of: Spec | None = None) -> list[Problem]:
    """Those that two of these have with each other, or one of them with those of a job."""
    problems: list[Problem] = []
    for first, second in suspects([one.facts for one in found]):
        one, other = found[first], found[second]
        unlike = one.spec is other.spec or not (one.written or other.written)
        if unlike or alike_at_most(one.facts, other.facts) or (of is not None and of not in (one.spec, other.spec)):
            continue
        problem = await _meeting(*((one, other) if other.written else (other, one)))
        if problem is not None and problem not in problems:
            problems.append(problem)
    return problems


async def _meeting(one: _Found, target: _Found) -> Problem | None:
    """Of a target with another target, or with what another job reads."""
    allowed = one.spec.options.allow_same_image and target.spec.options.allow_same_image
    try:
        verdict = await _verdict(one, target, allowed=allowed)
    except (MpconvError, TimeoutError):
        return None
    if verdict is Verdict.DIFFERENT or (allowed and verdict is Verdict.PROBABLE):
        return None
    why = f"its {target.what} '{target.name}' is the {one.what} of job '{one.spec.name}', '{one.name}'"
    fix = "give each its own" if one.written else "put it into another plan"
    if verdict is Verdict.PROBABLE:
        why, fix = (
            why.replace(" is the ", " is probably the ", 1),
            f"{fix}, or give {ALLOW} if you know that they are two",
        )
    return Problem(f"job '{target.spec.name}'", f"{why}: {fix}")


async def _verdict(one: _Found, other: _Found, *, allowed: bool) -> Verdict:
    async with asyncio.timeout(2 * _SECONDS):
        first = await transports.open_place(one.place, Access.READ)
        try:
            second = await transports.open_place(other.place, Access.READ)
            try:
                return await verdict_of(first, second, begun=allowed)
            finally:
                await second.close()
        finally:
            await first.close()


class _Look:
    """Opens what there is; a server that did not answer once is not asked again."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._silent: set[str | None] = set()

    async def at(self, spec: Spec, *, read: bool) -> list[_Found]:
        """The stores of a job. `read`: also those that it reads."""
        found: list[_Found] = []
        for place in (*(spec.sources if read else ()), spec.target):
            server = server_of(place.url)
            if place.url.startswith("null:"):
                continue
            async with self._room:
                if server is not None and server in self._silent:
                    continue
                try:
                    async with asyncio.timeout(_SECONDS):
                        found += await (self._target(spec) if place is spec.target else self._source(spec, place))
                except TimeoutError:
                    self._silent.add(server)
                except MpconvError:
                    continue
        return found

    async def _target(self, spec: Spec) -> list[_Found]:
        """With its data file, also one that an image which is there already names."""
        found: list[_Found] = []
        left = written_by(spec)
        while left:
            what, place = left.pop()
            try:
                store = await transports.open_place(place, Access.READ)
            except NoSuchImage:
                continue
            try:
                found.append(_Found(spec, what, place, store.name, await store.known_by()))
                if what is TARGET and not spec.options.create and spec.options.target_format == "qcow2":
                    left += await _data_file(spec, store)
            finally:
                await store.close()
        return found

    async def _source(self, spec: Spec, place: Place) -> list[_Found]:
        """With the files that it is made of."""
        image, [resolved] = await open_and_resolve([place], OpenOptions(trust=spec.options.trust))
        try:
            places = {transports.redacted(one.url): one for one in _all_of(resolved)}
            return [
                _Found(spec, _SOURCE, places[store.name], store.name, await store.known_by())
                for store in image.stores
                if store.name in places
            ]
        finally:
            await image.close()


async def _data_file(spec: Spec, store: Transport) -> list[tuple[str, Place]]:
    """That of the job's target in `store`."""
    try:
        header = (await read_metadata(store)).header
        if not header.external_data:
            return []
        return [(DATA_FILE, data_place(spec.target, header.data_file, spec.options.trust, written=True))]
    except ImageError:  # its own job will say so
        return []


def _all_of(place: Place) -> list[Place]:
    below = [one for one in (place.backing, place.data_file) if one is not None]
    return [place, *(deeper for one in below for deeper in _all_of(one))]
