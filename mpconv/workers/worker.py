"""The shell around a worker: its link, its storage connections, its copy coroutines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from mpconv import transports
from mpconv.formats.base import Image
from mpconv.formats.opening import OpenOptions, open_source
from mpconv.model.digest import packed
from mpconv.model.errors import Crowded, Fatal, MpconvError, Retryable, internal
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.protocol import failures, messages
from mpconv.protocol.codec import decode_from_coordinator, encode
from mpconv.protocol.job import Job
from mpconv.protocol.link import Link
from mpconv.transports.base import Access, Transport
from mpconv.transports.retry import AT_ONCE, Outage, Retry, keep_trying
from mpconv.workers.comparer import Comparer
from mpconv.workers.copier import Copier
from mpconv.workers.lease_queue import HeldLease, Reports
from mpconv.workers.targets import DroppableTarget, all_of, both

if TYPE_CHECKING:
    from mpconv.workers.digester import Digester

_T = TypeVar("_T")
_HEARTBEAT = 2.0


class _NoRoom(Exception):
    """A server has no room for another session; no error to be tried again here."""

    def __init__(self, error: Crowded) -> None:
        super().__init__(str(error))
        self.image = error.image
        self.why = error.reason or error.why
        self.certain = error.certain


class Worker(Reports):
    """Serves one coordinator until it says Bye or is gone. For now one job at a time."""

    def __init__(self, endpoint: str, parent_sentinel: int | None) -> None:
        self._endpoint = endpoint
        self._parent = parent_sentinel
        self._over = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._inbox: asyncio.Queue[messages.FromCoordinator] = asyncio.Queue()
        self._leases: dict[int, HeldLease] = {}
        self._copier: Copier | Comparer | Digester | None = None
        self._outage = Outage(AT_ONCE)
        self._images: list[Image | Transport] = []
        self._job: Job | None = None
        self._targets: list[Transport] = []
        self._branches: dict[int, DroppableTarget] = {}
        self._dropped: set[int] = set()
        self._outages: dict[int, Outage] = {}
        self._asked = 0
        self._proving = False
        self._insists = False

    async def serve(self) -> None:
        """Until it is over."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._over.set)
        await self._meet(context)
        self._spawn(self._obey(), self._serving)
        self._spawn(self._heartbeat(), self._serving)
        await self._over.wait()
        await _end(self._serving)
        await self._let_go()
        self._part()
        context.term()

    async def _meet(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._link = Link(context, zmq.DEALER, self._receive)
        self._link.socket.connect(self._endpoint)
        self._link.start()
        self._greet()

    def _greet(self) -> None:
        self._send(messages.Hello(messages.VERSION, os.getpid()))

    def _part(self) -> None:
        self._link.close(linger_ms=200)

    def _send(self, message: messages.FromWorker) -> None:
        self._link.send(encode(message))

    def _receive(self, frames: list[bytes]) -> None:
        self._hear(decode_from_coordinator(frames[-1]))

    def _hear(self, message: messages.FromCoordinator) -> None:
        if isinstance(message, messages.Bye):
            self._over.set()  # whatever is being waited for
        elif isinstance(message, messages.Drop):
            self._drop(message.target)  # it may be what is being waited for
        self._inbox.put_nowait(message)

    def _spawn(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        async def guarded() -> None:
            try:
                await work
            except MpconvError as error:
                self._report(error)
            except Exception as error:
                self._report(internal(error, "a worker"))

        task = asyncio.get_running_loop().create_task(guarded())
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(lambda _: work.close())  # it may be cancelled before it has begun

    def _report(self, error: MpconvError) -> None:
        """A target's connection that is lost is made again, and what was written through it is written again; sources'
        connections see to it themselves.
        """
        if not isinstance(error, Retryable):
            self._fail(error)
        elif self._copier is not None:
            given_up = self._lost(error, self._outage)
            if given_up is not None:
                self._fail(given_up)

    def _lost(self, error: Retryable, outage: Outage) -> MpconvError | None:
        """Begin anew, or tell the error to end with: for how long it was tried."""
        now = asyncio.get_running_loop().time()
        wait = outage.failed(error, now)
        if wait is None:
            return outage.given_up(error, now)
        self._copier = None  # from now on nothing that comes is for us, until the job is opened anew
        text = outage.words(error, now)
        if text is not None:
            self._trouble(text)
        self._spawn(self._begin_anew(wait), self._serving)
        return None

    def _target_failed(self, number: int, error: MpconvError) -> bool:
        """Of several. True: it is dropped; False: everything is opened anew."""
        if number in self._dropped:
            return True
        if isinstance(error, Retryable):
            if self._copier is None:
                return False
            given_up = self._lost(error, self._outages[number])
            if given_up is None:
                return False
            error = given_up
        self._drop(number)
        self._send(failures.target_failed(self._id, number, error))
        return True

    def _drop(self, number: int) -> None:
        self._dropped.add(number)
        branch = self._branches.pop(number, None)
        if branch is not None:
            self._spawn(branch.drop(), self._serving)

    async def _begin_anew(self, wait: float) -> None:
        await self._let_go()
        await asyncio.sleep(wait)
        self._greet()

    async def _let_go(self) -> None:
        """Of all that is being done, and of the connections; nothing is sent on them afterwards."""
        await _end(self._working)
        self._proving = False
        self._leases.clear()
        self._branches.clear()
        while self._images:
            await self._images.pop().close()

    def _fail(self, error: MpconvError) -> None:
        self._send(failures.failed(self._id, error))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            self._send(messages.Alive())

    async def _obey(self) -> None:
        while True:
            match await self._inbox.get():
                case messages.Open(job, _, insist):
                    self._insists = insist
                    await self._open(job)
                case messages.LeaseGrant(_, epoch, start, length, kind, token) if self._copier is not None:
                    await self._lease(epoch, Extent(start, length, Kind(kind)), token)
                case messages.Token(_, epoch, places):
                    if epoch in self._leases:
                        self._leases[epoch].places = places
                        self._leases[epoch].token.set()
                case messages.Flush(job_id) if self._copier is not None:
                    self._spawn(self._flush(job_id), self._working)

    async def _open(self, job: Job) -> None:
        if self._job is None:
            self._outage = Outage(Retry(job.retry_for))
        self._job = job
        try:
            self._copier = await keep_trying(
                lambda: self._opened(job), Retry(job.retry_for), self._trouble, self._outage
            )
        except _NoRoom as full:
            self._send(messages.Crowded(self._id, full.image, full.why, full.certain))
            return
        for _ in range(job.requests):
            self._spawn(self._copier.run(), self._working)
        self._asked = 2
        self._send(messages.Want(2))

    def _permitted(self, job: Job) -> Job:
        """What may be opened of it: on the coordinator's host everything."""
        return job

    async def _opened(self, job: Job) -> Copier | Comparer | Digester:
        """Everything is opened, or nothing."""
        try:
            return await self._if_let_in(self._connected(self._permitted(job)))
        except BaseException:
            await self._let_go()
            raise

    async def _if_let_in(self, opening: Coroutine[Any, Any, _T]) -> _T:
        """What it returns. _NoRoom where a server has no room, unless that is to be tried again."""
        try:
            return await opening
        except Crowded as error:
            if self._insists:
                raise
            raise _NoRoom(error) from None

    async def _connected(self, job: Job) -> Copier | Comparer | Digester:
        """Both ends at a time: each takes a dozen round trips."""
        how = OpenOptions(retry=Retry(job.retry_for), tell=self._trouble)
        first = self._image(job.sources, job.source_sizes, how)
        if job.compare:
            return Comparer(job, *await both(first, self._image(job.targets, job.target_sizes, how)), self)
        if not job.targets:
            from mpconv.workers.digester import Digester  # noqa: PLC0415  (others do without)

            return Digester(job, await first, self)
        source, self._targets = await both(first, self._open_targets(job))
        return _copier(job, source, self._targets, self)

    async def _image(self, places: list[Place], sizes: list[int], how: OpenOptions) -> Image:
        image = await open_source(places, how)
        self._images.append(image)
        check_sizes(image, sizes)
        return image

    async def _open_targets(self, job: Job) -> list[Transport]:
        if len(job.targets) > 1:
            return await self._open_several(job)
        growing, retry = job.clusters is not None, Retry(job.retry_for)
        target = await transports.open_place(job.targets[0], Access.WRITE, growing=growing, retry=retry)
        self._images.append(target)
        return [target]

    async def _open_several(self, job: Job) -> list[Transport]:
        """Those that are not dropped. One that is not to be had is dropped; the others wait for it meanwhile."""
        self._dropped |= set(job.dropped)
        retry = Retry(job.drop_after)

        async def open_one(number: int) -> None:
            async def attempt() -> Transport | None:
                if number in self._dropped:  # by another worker, meanwhile
                    return None
                place = job.targets[number]
                return await self._if_let_in(transports.open_place(place, Access.WRITE, retry=retry))

            outage = self._outages.setdefault(number, Outage(retry))
            try:
                store = await keep_trying(attempt, retry, self._trouble, outage)
            except MpconvError as error:
                self._target_failed(number, error)
                return
            if store is not None:
                self._images.append(store)
                if number not in self._dropped:
                    zeros = job.reads_zeros[number]
                    self._branches[number] = DroppableTarget(number, store, self._target_failed, reads_zeros=zeros)

        await all_of([open_one(number) for number in range(len(job.targets))])
        if not self._branches:
            raise Fatal("no target is left")
        return list(self._branches.values())

    async def _lease(self, epoch: int, extent: Extent, token: bool) -> None:
        assert self._copier is not None
        self._asked -= 1
        lease = HeldLease(epoch, extent, asyncio.Event())
        if token:
            lease.token.set()
        self._leases[epoch] = lease
        await self._copier.pieces.add(lease)
        if isinstance(self._copier, Copier) and self._copier.pieces.one_more():
            self._spawn(self._copier.run_below(), self._working)

    async def _flush(self, job_id: int) -> None:
        await all_of([target.flush() for target in self._targets])
        self._send(messages.FlushDone(job_id))

    async def _prove(self) -> None:
        """That a server which lost what was written keeps something now."""
        await all_of([target.flush() for target in self._targets])
        for outage in self._all_outages:
            outage.over()
        self._proving = False

    @property
    def _all_outages(self) -> list[Outage]:
        return [self._outage, *self._outages.values()]

    @property
    def _id(self) -> int:
        return self._job.id if self._job else 0

    def ready(self, lease: HeldLease) -> None:
        self._send(messages.Ready(self._id, lease.epoch, lease.needs, lease.parts))

    def done(self, lease: HeldLease) -> None:
        for outage in self._all_outages:
            if not outage.lost_data:
                outage.over()
            elif not self._proving:
                self._proving = True
                self._spawn(self._prove(), self._working)
        del self._leases[lease.epoch]
        sums = packed(lease.extent.start, lease.extent.length, lease.sums)
        self._send(messages.Done(self._id, lease.epoch, lease.zeros, sums))

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        for first in range(0, len(ranges), messages.MAX_RANGES):
            self._send(messages.Lost(self._id, ranges[first : first + messages.MAX_RANGES], why))

    def differs(self, offset: int) -> None:
        self._send(messages.Differs(self._id, offset))

    def _trouble(self, text: str) -> None:
        self._send(messages.Trouble(self._id, text))

    def said(self, text: str) -> None:
        self._send(messages.Said(self._id, text))

    def want_more(self) -> None:
        """Ask before running dry: a lease on its way for every lease's worth of pieces that is gone."""
        if self._copier is None:
            return
        if self._copier.pieces.waiting < self._copier.job.requests and self._asked < 2:
            self._asked += 1
            self._send(messages.Want(1))


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _copier(job: Job, source: Image, targets: list[Transport], reports: Reports) -> Copier:
    if job.clusters is None:
        return Copier(job, source, targets, reports)
    from mpconv.workers.allocating_copier import ClusterCopier  # noqa: PLC0415  (raw targets do without)

    return ClusterCopier(job, source, targets, reports, job.clusters)


def check_sizes(image: Image, sizes: list[int]) -> None:
    """Fatal unless the image is as long as the coordinator found it: of several, all that follow would be elsewhere."""
    for store, size in zip(image.stores, sizes, strict=bool(sizes)):
        if store.size != size:
            why = f"has changed its size from {size} to {store.size} bytes while it is copied"
            raise Fatal(f"'{store.name}' {why}: see who writes to it, then copy it again")
