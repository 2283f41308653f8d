"""One coordinator, the real one, and a crowd of workers that only say what workers say."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection

import msgspec
from zmq import curve_keypair

from mpconv.coordination.observer import Observer
from mpconv.coordinator import Coordinator
from mpconv.formats.raw import RawImage
from mpconv.model.errors import Deserted
from mpconv.model.place import Place
from mpconv.model.units import MiB
from mpconv.protocol.job import Job
from mpconv.protocol.keys import Keys, Listening
from mpconv.transports.base import Access
from mpconv.transports.null import connect
from mpconv.workers.launch.local import LocalWorkers
from tests.scale.crowd import Orders

LEASE = 16 * MiB
_SIZE = 1 << 50
_WARM_UP = 1.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`workers` in all, in `crowds` processes; each holds `leases` at a time, which take `latency` seconds."""

    workers: int
    crowds: int
    leases: int
    latency: float
    seconds: float
    fence: float = 10.0


class Figures(msgspec.Struct, frozen=True):
    """`granted`: leases done while `seconds` went by; `cpu`: seconds of the coordinator's process, all its threads."""

    granted: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Leases a second."""
        return self.granted / self.seconds

    @property
    def cost(self) -> float:
        """CPU seconds of a lease."""
        return self.cpu / max(1, self.granted)


def keys_for_now() -> Keys:
    """A key pair each."""
    pairs = [[half.decode() for half in curve_keypair()] for _ in range(2)]
    return Keys(
        coordinator_public=pairs[0][0],
        coordinator_secret=pairs[0][1],
        worker_public=pairs[1][0],
        worker_secret=pairs[1][1],
    )


def measure(load: Load, ours: Collection[int], theirs: Collection[int]) -> Figures:
    """The coordinator runs on the processors `ours`, the crowd on `theirs`."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = os.sched_getaffinity(0)
    with LocalWorkers([]) as local:
        try:
            return asyncio.run(_coordinate(load, local, ours, theirs))
        finally:
            os.sched_setaffinity(0, before)


async def _coordinate(load: Load, local: LocalWorkers, ours: Collection[int], theirs: Collection[int]) -> Figures:
    listening = Listening(endpoint="tcp://127.0.0.1:0", keys=keys_for_now(), fence=load.fence)
    url = f"null:?size={_SIZE}"
    source = RawImage(await connect(url, Access.READ))
    job = Job(
        id=1,
        sources=[Place(url=url)],
        targets=[Place(url="null:")],
        size=_SIZE,
        in_order=False,
        sparse_size=4096,
        zero_initialised=False,
        requests=4,
        durable=True,
        lease_size=LEASE,
    )
    heard = _Heard()
    coordinator = Coordinator(job, source, local, 0, heard, listening=listening)
    os.sched_setaffinity(0, ours)
    running = asyncio.ensure_future(coordinator.run())
    endpoint = await heard.endpoint
    crowds = [_start(load, listening, endpoint, number, theirs) for number in range(load.crowds)]
    try:
        while coordinator.bytes_done < 2 * load.workers * LEASE:
            await asyncio.sleep(0.1)
            if running.done():
                running.result()
        await asyncio.sleep(_WARM_UP)
        figures = await _watch(coordinator, load.seconds)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.gather(running, return_exceptions=True)
        return figures
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for crowd in crowds:
            crowd.kill()
            crowd.wait()


async def _watch(coordinator: Coordinator, seconds: float) -> Figures:
    done, cpu, at = coordinator.bytes_done, time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    granted = (coordinator.bytes_done - done) // LEASE
    return Figures(granted, time.monotonic() - at, time.process_time() - cpu)


def _start(
    load: Load, listening: Listening, endpoint: str, number: int, processors: Collection[int]
) -> subprocess.Popen[bytes]:
    orders = Orders(
        endpoint=endpoint,
        coordinator_public=listening.keys.coordinator_public,
        worker_public=listening.keys.worker_public,
        worker_secret=listening.keys.worker_secret,
        name=f"crowd{number}/{number}",
        workers=load.workers // load.crowds,
        leases=load.leases,
        latency=load.latency,
        fence=load.fence,
    )
    crowd = subprocess.Popen([sys.executable, "-m", "tests.scale.crowd"], stdin=subprocess.PIPE)
    os.sched_setaffinity(crowd.pid, processors)
    assert crowd.stdin is not None
    crowd.stdin.write(msgspec.json.encode(orders))
    crowd.stdin.close()
    return crowd


class _Heard(Observer):
    def __init__(self) -> None:
        self.endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        self.endpoint.set_result(endpoint)
