"""Keeps the journal of a copy that runs: what is new is gathered on the event loop, and committed beside it.

One commit at a time; what comes meanwhile goes into the next. So a slow disk makes commits larger, and holds nothing
up, but for places in the target that must not be used before the journal says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

from mpconv.core.digests import Sums
from mpconv.journal.file import Journal, resume_with
from mpconv.journal.kinds import Kinds
from mpconv.journal.records import Checkpoint, Happening, State
from mpconv.model.digest import REGION, WIDTH
from mpconv.model.errors import Interrupted, MpconvError, StatusWithdrawn
from mpconv.model.extent import Extent
from mpconv.model.ranges import Ranges
from mpconv.model.units import MiB

_LEAST_ROOM, _MOST_ROOM = 16 * MiB, 256 * MiB
_PARTS = 16


class Entries(Protocol):
    """Where the bytes of a target lie whose format has a say in that."""

    @property
    def end(self) -> int:
        """The first byte of the target that was never given out; 0 where each guest byte has its place for ever."""

    def mark(self, extent: Extent) -> None:
        """The extent is done: its entries are to be kept."""

    def changed(self, done: Ranges) -> dict[int, bytes]:
        """What to keep of the parts in which something was marked since the last call, as far as it is done."""


class Recorder:
    """`done`: what is durable from before, `zeros` bytes of it zero; `places` and `digests`: as a checkpoint's.
    `entries`: None where guest bytes lie where they lie in the guest disk. `kinds`: as a checkpoint's, from before.

    `on_failure` is called when the journal cannot be written, `on_room` when places may be used that could not before.
    """

    def __init__(
        self,
        journal: Journal,
        size: int,
        *,
        done: Ranges,
        zeros: int = 0,
        places: int = 0,
        digests: Mapping[int, bytes] = MappingProxyType({}),
        entries: Entries | None = None,
        kinds: bytes = b"",
    ) -> None:
        self.done = done
        self._kinds = Kinds(size, kinds)
        self.zeros = zeros
        self.digests = Sums()
        for region, sums in digests.items():
            self.digests.add(region * REGION, sums)
        self.written = self.bytes_done
        self.on_failure: Callable[[MpconvError], None] = lambda error: None
        self.on_room: Callable[[], None] = lambda: None
        self._journal = journal
        self._entries = entries
        self._room = max(_LEAST_ROOM, min(_MOST_ROOM, size // _PARTS))
        self._places = self._wanted_places = places
        self._new = Ranges()
        self._digested: set[int] = set()
        self._happened: list[Happening] = []
        self._due = False
        self._error: MpconvError | None = None
        self._committing: asyncio.Task[None] | None = None

    @property
    def resume_with(self) -> str:
        """The command that goes on with the copy."""
        return resume_with(self._journal.path)

    @property
    def bytes_done(self) -> int:
        """Done and durable."""
        return sum(end - start for start, end in self.done)

    def passed(self, extent: Extent) -> None:
        """Nobody writes it. That is kept with the next commit: it costs nothing to find out again."""
        self._add(extent)
        self.zeros += extent.length

    def durable(self, extents: Iterable[Extent], zeros: int, digests: Iterable[tuple[int, bytes]] = ()) -> None:
        """A flush made them durable, `zeros` bytes of them zero. `digests`: their sums, as Durable's."""
        for start, sums in digests:
            self.digests.add(start, sums)
            self._digested.update(range(start // REGION, start // REGION + len(sums) // WIDTH))
        for extent in extents:
            self._add(extent)
        self.zeros += zeros
        self._commit_soon()

    def happened(self, kind: str, text: str, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Something to be told later. `ranges`: (start, length) of the bytes that it happened to."""
        now = time.time()
        of_bytes = [Happening(now, kind, text, start, length) for start, length in ranges]
        self._happened += of_bytes or [Happening(now, kind, text)]

    def at_rest(self) -> None:
        """No write is under way: places that were not given out may be so in the next run too."""
        if self._entries is not None:
            self._wanted_places = self._entries.end

    def may_use(self, end: int) -> bool:
        """Whether bytes of the target below `end` may be written. False: `on_room` will be called.

        The next run begins behind all that this one may have used, since a write of a process that was killed may lie
        in a socket and land late. So the journal is told beforehand, in large steps.
        """
        if self._entries is None or not self._entries.end:
            return True
        if end + self._room // 2 > self._wanted_places:
            self._wanted_places = end + self._room
            self._commit_soon()
        return end <= self._places

    async def settle(self) -> None:
        """No write is under way. Everything is committed before tables are written, or with the last commit."""
        if self._error is not None:
            raise self._error
        if self._entries is not None:
            self.at_rest()
            await self._finish_commits(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last commit: how it ended."""
        if error is None:
            self.happened("finished", "")
            await self._finish_commits(State.FINISHED)
            return
        if isinstance(error, StatusWithdrawn):
            self.happened("began anew", str(error))
            await self._wait()
            await asyncio.to_thread(self._journal.begin_anew, None, self._happened)
            return
        stopped = isinstance(error, Interrupted) or not isinstance(error, MpconvError)
        self.happened("stopped" if stopped else "failed", str(error))
        with contextlib.suppress(MpconvError):  # the journal's own, which is the error already, or worth less than it
            await self._finish_commits(State.STOPPED if stopped else State.FAILED)

    async def _wait(self) -> None:
        """No commit is under way."""
        while self._committing is not None:
            await asyncio.wait([self._committing])

    async def _finish_commits(self, state: State | None) -> None:
        await self._wait()
        if self._error is not None:
            raise self._error
        await asyncio.to_thread(self._journal.commit, self._checkpoint(state))
        self._places = self._wanted_places

    def _add(self, extent: Extent) -> None:
        self.done.add(extent.start, extent.end)
        self._kinds.add(extent)
        self._new.add(extent.start, extent.end)
        if self._entries is not None:
            self._entries.mark(extent)

    def _checkpoint(self, state: State | None = None) -> Checkpoint:
        ranges = dict.fromkeys(self.done.around(start) for start, _ in self._new)
        happened, self._happened = self._happened, []
        digested, self._digested = self._digested, set()
        self._new = Ranges()
        self._due = False
        durable = self.bytes_done
        return Checkpoint(
            ranges=list(ranges),
            zeros=self.zeros,
            written=max(self.written, durable),
            durable=durable,
            kinds=self._kinds.changed(),
            entries=self._entries.changed(self.done) if self._entries is not None else {},
            places=self._wanted_places,
            digests={region: self.digests[region].to_bytes(WIDTH, "little") for region in digested},
            happened=happened,
            state=state,
        )

    def _commit_soon(self) -> None:
        self._due = True
        if self._committing is None and self._error is None:
            self._committing = asyncio.get_running_loop().create_task(self._commit())

    async def _commit(self) -> None:
        try:
            while self._due:
                checkpoint = self._checkpoint()
                await asyncio.to_thread(self._journal.commit, checkpoint)
                if checkpoint.places is not None:
                    self._places = checkpoint.places
                self.on_room()
        except MpconvError as error:
            self._error = error
            self.on_failure(error)
        finally:
            self._committing = None
