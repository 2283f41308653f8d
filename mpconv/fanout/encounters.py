"""Images of different jobs that are one under two names: what one job writes no other one may write or read.

All of them are opened once before any job begins, a few at a time, and none of them longer than it takes to see what it
is. One that is not there yet, or does not answer, keeps nobody waiting: its own job will say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from mpconv import transports
from mpconv.errors import MpconvError
from mpconv.fanout.plan import Problem
from mpconv.fanout.spec import Spec, server_of
from mpconv.formats.opening import How, open_and_resolve
from mpconv.job import Place
from mpconv.transports.base import Access
from mpconv.transports.identity import ALLOW, Facts, Verdict, alike_at_most, suspects
from mpconv.transports.sameness import verdict_of

_AT_ONCE = 8
_SECONDS = 5.0
"""For each image."""


class _Found(Struct):
    """One store of a job's image; `place`: by which it can be opened again."""

    spec: Spec
    written: bool
    place: Place
    name: str
    facts: Facts


async def meetings(specs: Sequence[Spec]) -> list[Problem]:
    """What is wrong with these jobs side by side."""
    if len(specs) < 2:
        return []
    look = _Look()
    found = [one for some in await asyncio.gather(*(look.at(spec) for spec in specs)) for one in some]
    problems: list[Problem] = []
    for first, second in suspects([one.facts for one in found]):
        one, other = found[first], found[second]
        unlike = one.spec is other.spec or not (one.written or other.written)
        if unlike or alike_at_most(one.facts, other.facts):
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
    what = "target" if one.written else "source"
    why = f"its target '{target.name}' is the {what} of job '{one.spec.name}', '{one.name}'"
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

    async def at(self, spec: Spec) -> list[_Found]:
        """The stores of a job."""
        found: list[_Found] = []
        for place in (*spec.sources, spec.target):
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
        store = await transports.open_place(spec.target, Access.READ)
        try:
            return [_Found(spec, True, spec.target, store.name, await store.known_by())]
        finally:
            await store.close()

    async def _source(self, spec: Spec, place: Place) -> list[_Found]:
        """With the files that it is made of."""
        image, [resolved] = await open_and_resolve([place], How(trust=spec.options.trust))
        try:
            places = {transports.redacted(one.url): one for one in _all_of(resolved)}
            return [
                _Found(spec, False, places[store.name], store.name, await store.known_by())
                for store in image.stores
                if store.name in places
            ]
        finally:
            await image.close()


def _all_of(place: Place) -> list[Place]:
    below = [one for one in (place.backing, place.data_file) if one is not None]
    return [place, *(deeper for one in below for deeper in _all_of(one))]
