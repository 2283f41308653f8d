"""The shell around core: the ROUTER socket, the clock, the workers; it runs the state machine's actions.

The coordinator's process opens images for metadata alone; image bytes never pass through it.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

import msgspec
import zmq

from mpconv import transports
from mpconv.coordination.allocation import Allocation
from mpconv.coordination.local_group import LocalGroup
from mpconv.coordination.observer import Observer
from mpconv.coordination.outages import Outages
from mpconv.coordination.process_roster import ProcessRoster
from mpconv.coordination.remote_group import GUEST, STOP_TOLD, RemoteGroup
from mpconv.coordination.scan import StatusScan, StatusSource
from mpconv.coordination.sessions import SessionLimits
from mpconv.coordination.signals import on_signal
from mpconv.core import events
from mpconv.core import state as core
from mpconv.core.digests import Sums
from mpconv.core.leases import LeaseState
from mpconv.core.sequence import Order
from mpconv.model.digest import BLOCK
from mpconv.model.errors import Deserted, Fatal, Interrupted, MpconvError, ProtocolError, WorkerLost, internal
from mpconv.model.extent import Extent
from mpconv.protocol import descriptors, messages
from mpconv.protocol.codec import decode_from_worker, encode
from mpconv.protocol.failures import error_of
from mpconv.protocol.job import Job
from mpconv.protocol.link import Link
from mpconv.transports.base import Transport
from mpconv.transports.retry import ANSWERS, Tell, silently
from mpconv.workers.launch.provider import WorkerProvider

if TYPE_CHECKING:
    from mpconv.formats.qcow2.layout import Layout
    from mpconv.journal.recorder import Recorder
    from mpconv.protocol.keys import Listening

CHECKPOINT_SECONDS = 30.0
"""So much is written again at most when a target is lost or a worker dies."""
_TICK = 1.0
_DESCRIPTORS = 16
"""What links need, besides one for each worker process; twice as many with those of other hosts."""
_BYE_GRACE = 2.0
_FAIL_GRACE = 0.5


class Coordinator(LocalGroup, RemoteGroup, SessionLimits):
    """Runs one job with `count` local workers, or fewer if no more are supplied, and with those of other hosts if it is
    `listening`.

    `tell`: hears of servers that do not answer. `rate`: bytes written per second at most, 0 for no limit. `block`: no
    two leases share a block of so many bytes. `settle_seconds` and `checkpoint_seconds`: as CoordinatorState's.
    `recorder`: is told what is durable, and knows what was so before. `holds`: as SessionLimits'. `keeping`:
    as StatusScan's.
    """

    def __init__(
        self,
        job: Job,
        source: StatusSource,
        workers: WorkerProvider,
        count: int,
        observer: Observer,
        *,
        tell: Tell = silently,
        rate: int = 0,
        block: int = 1,
        settle_seconds: float = 0,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        layout: Layout | None = None,
        recorder: Recorder | None = None,
        listening: Listening | None = None,
        holds: Sequence[Transport] | None = None,
        keeping: bool = False,
    ) -> None:
        RemoteGroup.__init__(self, listening)
        SessionLimits.__init__(self, holds)
        if job.digest:
            block = math.lcm(block, BLOCK)
        self._job = job
        self._source = source
        self._workers = workers
        self._most = count
        self._crew = ProcessRoster(workers.share(count, guests=listening is not None))
        self._observer = observer
        self._listener = observer.listener
        self._tell = tell
        self._state = core.CoordinatorState(
            job.size,
            order=_order(job, several=count > 1 or listening is not None),
            zero_initialised=job.zero_initialised,
            zeros_from=job.clusters.zeros_end if job.clusters is not None else None,
            durable=job.durable,
            writes_zeros=not job.sparse_size or job.clusters is not None,
            leaves_unallocated=job.clusters is not None,
            rate=rate,
            settle_seconds=settle_seconds,
            checkpoint_seconds=checkpoint_seconds,
            seams=[seam for seam in source.seams if seam % block == 0],
            workers=self._crew.count,
            lease_size=job.lease_size,
            buffer_size=job.buffer_size,
            done=copy.deepcopy(recorder.done) if recorder is not None else None,
            zeros_done=recorder.zeros if recorder is not None else 0,
            digests_done=copy.deepcopy(recorder.digests) if recorder is not None else None,
        )
        self._recorder = recorder
        if recorder is not None:
            recorder.on_failure, recorder.on_room = self._fail, self._send_held
        self._held: deque[tuple[int, str, messages.Token]] = deque()
        self._wake: asyncio.TimerHandle | None = None
        self._told: set[str] = set()
        self._told_workers = 0
        self._placing = Allocation(layout, job.clusters) if layout is not None and job.clusters is not None else None
        self._walk = StatusScan(source, job, block, self._found, keeping=keeping)
        self._anew = not self._state.bytes_done
        self._interrupted: Interrupted | None = None
        self.may_have_written = False
        self.differs_at: int | None = None
        self.failed: dict[int, MpconvError] = {}
        """Of several targets those that failed in this run, by their numbers in the job."""
        self._dropped = set(job.dropped)
        self._outages = Outages(observer.retrying)

    async def run(self) -> None:
        """Copy. Raises the first error, with no worker left behind."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._outcome: asyncio.Future[None] = loop.create_future()
        descriptors.need(_DESCRIPTORS * (1 if self._listening is None else 2) + self._most)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoint = endpoint = f"ipc://@mpconv-{os.urandom(16).hex()}"
        self._link = Link(context, zmq.ROUTER, self._receive)
        self._link.socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())  # nobody else is let in
        self._link.socket.bind(endpoint)
        self._link.start()
        failed = True
        walk = loop.create_task(self._walk_on())
        ticking = loop.create_task(self._tick())
        if self._listener is not None:
            self._listener.began(self._job, self._state)
        try:
            self._open_gate(context, self._workers.attach(self, guests=self._listening is not None))
            self._start(self._crew.count)
            with on_signal(self._interrupt):
                await self._outcome
            failed = False
        finally:
            self._outages.end()
            for running in (walk, ticking):
                running.cancel()
            if self._wake is not None:
                self._wake.cancel()
            await asyncio.gather(walk, ticking, self._settle_room(), return_exceptions=True)
            for name in self._crew:
                self._link.send(name.encode("latin-1"), encode(messages.Bye()))
            try:
                await self._dismiss_guests(self._error())
            finally:
                await self._workers.stop(_FAIL_GRACE if failed else _BYE_GRACE)
                self._link.close()
                dropped = self._link.dropped + self._close_gate()
                if dropped:
                    self._observer.said(f"{dropped} frames that are no messages were dropped")
                context.term()

    def _error(self) -> BaseException | None:
        """What the job failed of, if that is known."""
        return self._outcome.exception() if self._over and not self._outcome.cancelled() else None

    @property
    def _over(self) -> bool:
        return self._outcome.done()

    @property
    def bytes_done(self) -> int:
        """Completed bytes."""
        return self._state.bytes_done

    @property
    def digests(self) -> Sums:
        """The sums of the blocks' digests, in a job that wants them."""
        return self._state.digests

    @property
    def named_zero(self) -> list[tuple[int, int]] | None:
        """The ranges (start, end) that counted as zeros without being read, of who keeps them; None: they are not all
        known, since an earlier run did a part.
        """
        return self._walk.named if self._anew else None

    @property
    def bytes_zero(self) -> int:
        """Those of them that are zero."""
        return self._state.bytes_zero

    def _fail(self, error: MpconvError) -> None:
        if not self._over:
            self._outcome.set_exception(error)

    def _give_up(self, error: Deserted) -> None:
        """Unless somebody works: what is done is kept, as at an interruption."""
        if not self._over and not self._guests and not self._crew.count and self._interrupted is None:
            self._interrupted = error
            self._handle(events.Stop())

    def _interrupt(self, error: Interrupted) -> None:
        """The first time what is being written ends and is flushed; the second time it ends now."""
        if self._interrupted is not None or self._job.compare or not self._job.targets:
            self._fail(error)
            return
        self._interrupted = error
        if self._over:
            return
        self._loop.call_later(STOP_TOLD, self._say_it_stops)
        self._handle(events.Stop())

    def _say_it_stops(self) -> None:
        if not self._over:
            self._observer.warn("stopping: what is being written ends, and is flushed; once more stops at once")

    def _lose(self, event: events.WorkerDead | events.Restarted) -> None:
        if isinstance(event, events.WorkerDead):
            self._outages.over(event.worker)
        self._handle(event)
        if self._placing is not None:
            self._placing.keep(self._state.leases.live.keys())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._tick_once()

    def _tick_once(self) -> None:
        try:
            for pid in self._crew.silent(self._loop.time()):
                self._kill(pid)
            self._look_after_guests()
            self._tell_workers()
            self._observer.tick()
            self._handle(events.Tick())
        except MpconvError as error:
            self._fail(error)
        except Exception as error:
            self._fail(internal(error, "the coordinator"))

    def _tell_workers(self) -> None:
        count = len(self._crew) + len(self._guests)
        if count != self._told_workers:
            self._told_workers = count
            self._observer.workers(count)

    async def _walk_on(self) -> None:
        try:
            await self._walk.run()
        except MpconvError as error:
            self._fail(error)
        except Exception as error:
            self._fail(internal(error, "the coordinator"))

    def _found(self, extents: tuple[Extent, ...]) -> int:
        self._handle(events.StatusFound(extents))
        self._observer.skips(self._state.needless, self._state.passed)
        return self._state.cursor.ahead

    def _receive(self, frames: list[bytes]) -> None:
        name, message = frames[0].decode("latin-1"), decode_from_worker(frames[-1])
        try:
            self._take(name, message)
        except ProtocolError as error:
            self._fail(WorkerLost(f"a worker process sent what none sends ({error}): please report it"))
        except Exception as error:
            self._fail(internal(error, "the coordinator"))

    def _take(self, name: str, message: messages.FromWorker) -> None:
        heard = self._crew.heard(name, self._loop.time())
        if not heard and not isinstance(message, messages.Hello | messages.Failed):
            return  # what a dead worker said still lay in the socket
        match message:
            case messages.Hello(version, pid):
                if version != messages.VERSION:
                    self._fail(Fatal("mpconv was replaced by another version while it ran: run the command again"))
                if self._over:
                    self._send(name, messages.Bye())
                    return
                self._hello(name, pid)
            case messages.Alive():
                self._handle(events.SignOfLife(name))
            case messages.Failed() if self._crew.knew(name):
                self._fail(error_of(message))
            case _:
                self._take_work(name, message)

    def _take_work(self, name: str, message: messages.FromWorker) -> None:
        job = self._job.id
        match message:
            case messages.Want(leases):
                if self._outages.waiting:
                    self._outages.works(name, self._loop.time())
                for _ in range(leases):
                    self._handle(events.LeaseWanted(name))
            case messages.Ready(of, epoch) if of == job:
                self._ready(name, message)
            case messages.Done(of, epoch, zeros, digests) if of == job:
                self._done(name, epoch, zeros, digests)
            case messages.FlushDone(of) if of == job:
                self._outages.works(name, self._loop.time())
                self._handle(events.Flushed(name))
            case messages.TargetFailed(of, target) if of == job:
                self._drop(target, error_of(message))
            case messages.Lost(of, ranges, why) if of == job:
                self._observer.lost(ranges, why)
            case messages.Differs(of, offset) if of == job:
                self.differs_at = min(offset, self.differs_at if self.differs_at is not None else offset)
            case messages.Said(of, text) if of == job and text not in self._told:
                self._told.add(text)
                self._observer.said(text)
            case messages.Crowded(of, image, why, certain) if of == job:
                self._no_room(name, image, why, certain=certain)
            case messages.Trouble(of, text) if of == job:
                if self._listener is not None:
                    self._listener.trouble(name)
                if text.endswith(ANSWERS):
                    self._outages.over(name)
                else:
                    self._outages.trouble(name, text, self._loop.time())
                self._tell(text)

    def _drop(self, target: int, error: MpconvError) -> None:
        """One of several targets failed: all workers go on without it."""
        if target >= len(self._job.targets):
            raise ProtocolError(f"target {target} of {len(self._job.targets)} is said to have failed")
        if self._outcome.done() or target in self._dropped:
            return
        self.failed[target] = error
        self._dropped.add(target)
        self._observer.dropped(target, transports.redacted(self._job.targets[target].url), str(error))
        if len(self._dropped) == len(self._job.targets):
            self._fail(error)
        for name in (*self._crew, *(guest.name for guest in self._guests)):
            self._send(name, messages.Drop(self._job.id, target))

    def _hello(self, name: str, pid: int) -> None:
        """From a new worker, or from one that has lost a target and begins anew."""
        again = name in self._crew
        member = self._crew.hello(name, pid, self._loop.time())
        if member is None:
            return
        if self._listener is not None:
            self._listener.hello(name, f"pid {pid}")
        if again:
            self._lose(events.Restarted(name))
        self._tell_workers()
        share, dropped = self._share(member.number), sorted(self._dropped)
        job = msgspec.structs.replace(self._job, requests=share, dropped=dropped)
        self._send(name, messages.Open(job, insist=again or self._crew.replaced))

    def _ready(self, name: str, message: messages.Ready) -> None:
        lease = self._state.leases.current(message.epoch, name)
        if self._placing is not None and lease is not None:
            self._placing.ready(message, lease.extent)
        self._handle(events.TokenWanted(name, message.epoch))

    def _done(self, name: str, epoch: int, zeros: int, digests: bytes) -> None:
        lease = self._state.leases.current(epoch, name)
        self._handle(events.LeaseDone(name, epoch, zeros, digests))
        if lease is None or lease.state is not LeaseState.DONE:
            return
        if self._placing is not None:
            self._placing.done(epoch, lease.extent)
        if self._outages.waiting:
            self._outages.works(name, self._loop.time())
        if self._listener is not None:
            self._listener.wrote(name, lease.extent, zeros)

    def _token(self, name: str, epoch: int) -> None:
        places: list[int] = []
        if self._placing is not None:
            places = self._placing.token(epoch, self._state.leases.live[epoch].extent)
        token = messages.Token(self._job.id, epoch, places)
        if self._placing is None or self._recorder is None:
            self._send(name, token)
            return
        self._held.append((self._placing.layout.end, name, token))
        self._send_held()

    def _send_held(self) -> None:
        """Tokens whose places the journal does not know of yet wait."""
        assert self._recorder is not None
        while self._held and self._recorder.may_use(self._held[0][0]):
            _, name, token = self._held.popleft()
            if name in self._crew or self._guests.get(name) is not None:
                self._send(name, token)

    def _share(self, number: int) -> int:
        """How many of the job's buffers the worker of that number has in flight."""
        each, more = divmod(self._job.requests, self._most)
        return each + (number < more)

    def _open_again(self, name: str, *, insist: bool = False) -> None:
        fence = self._listening.fence if name.startswith(GUEST) and self._listening is not None else 0.0
        job = msgspec.structs.replace(self._job, dropped=sorted(self._dropped))
        self._send(name, messages.Open(job, fence, insist))

    def _send(self, name: str, message: messages.FromCoordinator) -> None:
        if name.startswith(GUEST):
            self._send_to_guest(name, encode(message))
        else:
            self._link.send(name.encode("latin-1"), encode(message))

    def _handle(self, event: events.Event) -> None:
        if self._over:
            return
        before = self._state.bytes_done
        actions = self._state.handle(event, self._loop.time())
        if self._listener is not None:
            self._listener.took(event, actions)
        for action in actions:
            match action:
                case events.Grant(name, epoch, extent, token):
                    self.may_have_written |= token
                    self._grant(name, epoch, extent, token)
                case events.GiveToken(name, epoch):
                    self.may_have_written = True
                    self._token(name, epoch)
                case events.Passed(extent):
                    self._observer.skips(self._state.needless, self._state.passed)
                    if self._placing is not None:
                        self._placing.layout.passed(extent)
                    if self._recorder is not None:
                        self._recorder.passed(extent)
                case events.Durable(extents, zeros, digests):
                    if self._recorder is not None:
                        self._recorder.durable(extents, zeros, digests)
                case events.Undone():
                    pass  # the recorder knows durable extents only, and the state has lowered `bytes_done` itself
                case events.AskFlush(name):
                    self._send(name, messages.Flush(self._job.id))
                case events.LostContact(name):
                    pid = self._crew.doubted(name, self._loop.time())
                    if pid is not None:
                        self._kill(pid)
                case events.LetGo(name):
                    self._send(name, messages.Bye())
                case events.Finish():
                    if not self._over:
                        self._outcome.set_result(None)
                case events.Stopped():
                    assert self._interrupted is not None
                    if self._recorder is not None:
                        self._recorder.at_rest()
                    self._fail(self._interrupted)
                case _:
                    assert_never(action)
        if self._state.bytes_done != before:
            self._observer.progress(self._state.bytes_done, self._job.size, self._state.bytes_zero)
        self._walk.known(self._state.cursor.ahead)
        self._arrange_wake()
        self._end_when_it_differs()

    def _arrange_wake(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._state.wake_at is not None:
            self._wake = self._loop.call_at(self._state.wake_at, self._handle, events.Tick())

    def _end_when_it_differs(self) -> None:
        """A difference is the first one when nothing below it is under way, nor left by a worker that died: leases are
        granted ascending.
        """
        if self.differs_at is None or self._over:
            return
        upcoming = self._state.cursor.peek()
        if upcoming is not None and upcoming.start <= self.differs_at:
            return
        if all(lease.extent.start > self.differs_at for lease in self._state.leases.live.values()):
            self._outcome.set_result(None)

    def _grant(self, name: str, epoch: int, extent: Extent, token: bool) -> None:
        self._send(
            name,
            messages.LeaseGrant(self._job.id, epoch, extent.start, extent.length, int(extent.kind), token),
        )


def _order(job: Job, *, several: bool) -> Order:
    """One worker keeps the order by itself: it gets its leases ascending, and places as well."""
    if job.clusters is None:
        return Order.ASCENDING if job.in_order and several else Order.FREE
    if not job.in_order:
        return Order.ASKED
    return Order.ASCENDING if several else Order.FOLLOWING
