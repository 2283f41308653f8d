"""Workers placed by dask.distributed: one call a host, pinned to it, that starts `mpconv worker` and ends with it.

Nothing but the placement passes through Dask: what to copy, and the bytes, go other ways (docs/cluster.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec

from mpconv.model.errors import Deserted, Fatal, MpconvError, Unreachable, one_line
from mpconv.transports.reachability import why_unreachable
from mpconv.workers.launch.addresses import is_loopback, is_unspecified
from mpconv.workers.launch.dask_child import Call, Outcome, end, serve

Client: TypeAlias = Any
Future: TypeAlias = Any
"""Dask's; its annotations come and go with its versions."""

_IS_IT_THERE = "is it running, and is this its address?"
_CONNECT = 10.0
"""Seconds in which a scheduler has to answer."""
_LOOK = 1.0
"""Seconds between two looks at who is there, and what became of the calls."""
_PATIENCE = 5.0
"""Seconds without any worker after which people are told what is waited for."""
_END = 15.0
"""Seconds that the ending of the children may take; longer than the children's own grace."""
_CLOSE = 3.0
_ANSWER = 2.0
"""Seconds that an outcome may take to come here."""
_TRIES = 3
"""Times that a host's worker command may die until its host is left alone for a while."""
_AGAIN = 60.0
"""Seconds after which a host that did not take part is asked again."""
_WORKED = 60.0
"""Seconds after which a call that ends badly is no refusal: longer than a child looks for its coordinator."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Where and which. `hosts`: names or addresses of hosts, or names of Dask workers; none: all. `resources`: what a
    Dask worker must have, and what of it each call takes. `processes`: on each host, 0 for one a core. `key_file`: one
    that the hosts have; else `keys` is the content of one, for the workers alone. `near`: the local address that
    reaches the scheduler. `shared_files`: the workers open files of their hosts.
    """

    scheduler: str
    near: str
    hosts: tuple[str, ...] = ()
    resources: tuple[tuple[str, float], ...] = ()
    processes: int = 0
    key_file: str | None = None
    keys: str = ""
    shared_files: bool = False

    def __repr__(self) -> str:
        return f"Cluster({self.scheduler})"

    @property
    def host(self) -> str:
        """The scheduler's."""
        return self.scheduler.partition("://")[2].rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The scheduler's."""
        return int(self.scheduler.rpartition(":")[2])


class _Host:
    """What is known of one host: the calls made to it, and whether it is asked again."""

    def __init__(self) -> None:
        self.future: Future | None = None
        self.asked: frozenset[str] = frozenset()
        self.asked_at = 0.0
        self.left_alone_until = 0.0
        self.refused = False
        self.deaths = 0
        self.told: set[str] = set()


class Placement:
    """Keeps one call on each of the cluster's hosts from `begin` until the end of the context. `warn` and `said`: hear
    what people should know; to be set before.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.warn: Callable[[str], None] = _silently
        self.said: Callable[[str], None] = _silently
        self._give_up: Callable[[Deserted], None] = lambda error: None
        self._client: Client | None = None
        self._run = ""
        self._endpoint = ""
        self._keeping: asyncio.Task[None] | None = None
        self._hosts: dict[str, _Host] = {}
        self._named: set[str] = set()
        self._unfit: set[str] = set()
        self._asked: set[str] = set()
        self._told: set[str] = set()
        self._told_alone = False
        self._alone_since: float | None = None

    async def __aenter__(self) -> Self:
        """Raises Unreachable when the scheduler does not answer, Fatal when it is not to be talked to."""
        _quieten()
        cluster = self._cluster
        why = await asyncio.to_thread(why_unreachable, cluster.host, [cluster.port])
        if why is not None:
            raise Unreachable(f"the Dask scheduler at {cluster.scheduler} cannot be reached: {why}: {_IS_IT_THERE}")
        self._client = await self._connected()
        self._named = await _resolved(self._cluster.hosts)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        try:
            await self._end()
        finally:
            await self._disconnect()

    def begin(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        """A coordinator listens there from now on; and no more where one did before. `give_up`: is called when no host
        takes part, as often as that is seen.
        """
        self._give_up = give_up
        address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        if is_unspecified(address.strip("[]")):
            address = f"[{self._cluster.near}]" if ":" in self._cluster.near else self._cluster.near
        self._endpoint = f"tcp://{address}:{port}"
        before, self._keeping = self._keeping, asyncio.get_running_loop().create_task(self._keep(self._keeping))
        if before is not None:
            before.cancel()

    async def _connected(self) -> Client:
        from distributed import Client as Connection  # noqa: PLC0415  (few need it, and it takes a third of a second)

        client = None
        try:
            client = Connection(  # type: ignore[no-untyped-call]
                self._cluster.scheduler,
                asynchronous=True,
                set_as_default=False,
                timeout=_CONNECT,
                name="mpconv",
            )
            async with asyncio.timeout(_CONNECT):  # which Dask's own does not end when somebody else answers there
                return await client
        except Exception as error:
            at = f"the Dask scheduler at {self._cluster.scheduler}"
            if client is not None:
                await _closed(client)
            if isinstance(error, OSError):
                raise Unreachable(f"{at} does not answer for {_CONNECT:.0f} seconds: {_IS_IT_THERE}") from None
            why = "is it one, with tcp:// or tls:// as it has it, and of this version of dask?"
            raise Fatal(f"{at} cannot be used ({one_line(str(error))}): {why}") from None

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._hosts.clear()
        if client is not None:
            await _closed(client)

    async def _keep(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        await self._end()
        while True:
            try:
                if self._client is None:
                    self._client = await self._connected()
                    self.said(f"the Dask scheduler at {self._cluster.scheduler} is there again")
                    await self._end()
                if self._client.status != "running":
                    raise Unreachable("")
                async with asyncio.timeout(_CONNECT):
                    await self._look(self._client)
            except (OSError, MpconvError):
                await self._lost()
            except Exception as error:
                self._complain(error)
                await self._lost()
            await asyncio.sleep(_LOOK)

    def _complain(self, error: Exception) -> None:
        """Of what Dask did; the copy goes on."""
        text = f"the Dask scheduler at {self._cluster.scheduler}: {one_line(f'{type(error).__name__}: {error}')}"
        if text not in self._told:
            self._told.add(text)
            self.warn(text)

    async def _lost(self) -> None:
        """Who works goes on: that needs no Dask."""
        if self._client is not None:
            at = self._cluster.scheduler
            self.warn(f"the Dask scheduler at {at} is lost: the workers that are there go on, and it is looked for")
            await self._disconnect()

    async def _end(self) -> None:
        """End all that was placed, what may have been placed over a connection that is lost too."""
        client, run = self._client, self._run
        self._run = secrets.token_hex(8)
        if client is None or client.status != "running" or not run:
            return
        try:
            async with asyncio.timeout(_END):
                futures = [host.future for host in self._hosts.values() if host.future is not None]
                if futures:
                    await client.cancel(futures)
                known = await client.scheduler.identity()
                there = [address for address in known["workers"] if address in self._asked]
                if there:
                    await client.run(end, run, workers=there, on_error="ignore")
        except OSError:  # or nobody answers: then they see by themselves that the coordinator is gone
            pass
        except Exception as error:
            self._complain(error)
        self._hosts.clear()

    async def _look(self, client: Client) -> None:
        known = await client.scheduler.identity()
        there = self._candidates(known["workers"])
        for name in list(self._hosts):
            await self._review(name, self._hosts[name], there.get(name, frozenset()))
        now = asyncio.get_running_loop().time()
        for name, addresses in there.items():
            host = self._hosts.setdefault(name, _Host())
            if host.future is None and (now > host.left_alone_until or not addresses <= host.asked):
                self._place(client, name, host, addresses)
        self._tell_when_alone()

    def _candidates(self, workers: Mapping[str, Mapping[str, Any]]) -> dict[str, frozenset[str]]:
        """The addresses of the Dask workers that may be asked, by their hosts."""
        found: dict[str, set[str]] = {}
        for address, about in workers.items():
            host = str(about["host"])
            if about["status"] != "running" or not self._wanted(host, about):
                continue
            why = self._why_unfit(address, host)
            if why is None:
                found.setdefault(host, set()).add(address)
            elif host not in self._unfit:
                self._unfit.add(host)
                self.warn(f"the Dask worker at {address} is not asked: {why}")
        return {host: frozenset(addresses) for host, addresses in found.items()}

    def _wanted(self, host: str, about: Mapping[str, Any]) -> bool:
        if self._cluster.hosts and not self._named & {host, str(about["name"])}:
            return False
        return all(about["resources"].get(name, 0) >= amount for name, amount in self._cluster.resources)

    def _why_unfit(self, address: str, host: str) -> str | None:
        if not self._cluster.key_file and not address.startswith("tls://") and not is_loopback(host):
            return "the key would pass to it in the clear; use tls://, or a --key-file that all hosts have"
        listening = self._endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        if is_loopback(listening) and not is_loopback(host):
            return f"{self._endpoint} is another one there; say --listen tcp://ADDR:PORT, where it reaches this host"
        return None

    def _place(self, client: Client, name: str, host: _Host, addresses: frozenset[str]) -> None:
        cluster = self._cluster
        call = Call(
            run=self._run,
            endpoint=self._endpoint,
            processes=cluster.processes,
            key_file=cluster.key_file,
            keys=cluster.keys if cluster.key_file is None else "",
            shared_files=cluster.shared_files,
        )
        host.asked, host.asked_at = addresses, asyncio.get_running_loop().time()
        self._asked |= addresses
        host.future = client.submit(
            serve,
            call,
            key=f"mpconv-worker-{secrets.token_hex(8)}",
            workers=sorted(addresses),
            resources=dict(cluster.resources) or None,
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        self.said(f"workers are placed on {name}")

    async def _review(self, name: str, host: _Host, there: frozenset[str]) -> None:
        """What became of the call to that host, where `there` are Dask workers now."""
        future = host.future
        if future is None:
            return
        if future.status == "pending":
            if not host.asked & there:
                self.warn(f"the Dask worker on {name} is gone: its work is done by others, or by the next one there")
                await future.cancel()
                host.future = None
            return
        if future.status == "finished":
            with contextlib.suppress(TimeoutError, CancelledError):  # the Dask worker may be gone since
                outcome = await asyncio.wait_for(future, _ANSWER)
                host.future = None
                self._ended(name, host, outcome)
            return
        host.future = None
        if future.status == "error":
            error = await future.exception()
            text = f"{type(error).__name__}: {one_line(str(error)).strip()}"
            known = (
                "mpconv must be installed where its Dask workers run" if isinstance(error, ImportError) else "Dask says"
            )
            self._declined(name, host, f"{known} ({text})")

    def _ended(self, name: str, host: _Host, outcome: Outcome) -> None:
        if outcome.code > 0:
            self._declined(name, host, outcome.said)
        elif outcome.code == 0:  # the copy is over, or somebody had them leave
            self._leave_alone(host)
        else:
            host.deaths += 1
            why = f"its mpconv worker ended (signal {-outcome.code})"
            if host.deaths % _TRIES:
                self.warn(f"{name}: {why}; it is started again")
            else:
                self._declined(name, host, why)

    def _declined(self, name: str, host: _Host, why: str) -> None:
        """It is asked again later: what keeps it from working may be over then."""
        worked = asyncio.get_running_loop().time() - host.asked_at > _WORKED
        host.refused = not worked
        self._leave_alone(host)
        if why not in host.told:
            host.told.add(why)
            self.warn(f"{name} does not take part: {one_line(why)}")

    def _leave_alone(self, host: _Host) -> None:
        host.left_alone_until = asyncio.get_running_loop().time() + _AGAIN

    def _tell_when_alone(self) -> None:
        if any(host.future is not None for host in self._hosts.values()):
            self._alone_since = None
            return
        if any(host.refused for host in self._hosts.values()) or self._unfit:
            self._give_up(Deserted("no host of the Dask cluster takes part: the warnings above say why"))
        now = asyncio.get_running_loop().time()
        self._alone_since = now if self._alone_since is None else self._alone_since
        if now - self._alone_since > _PATIENCE and not self._hosts and not self._told_alone:
            self._told_alone = True
            why = "has no worker that is wanted: one is waited for; see --cluster-hosts and --cluster-resource"
            self.warn(f"the Dask scheduler at {self._cluster.scheduler} {why}")


def _silently(text: str) -> None:
    """Nobody listens."""


async def _resolved(names: tuple[str, ...]) -> set[str]:
    """The names, and the addresses of those that are hosts'."""
    found = set(names)
    for name in names:
        with contextlib.suppress(OSError):
            answers = await asyncio.get_running_loop().getaddrinfo(name, None)
            found |= {str(address[0]) for *_, address in answers}
    return found


async def _closed(client: Client) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), _CLOSE)


def _quieten() -> None:
    """What Dask has to say of connections we say ourselves, in one line."""
    warnings.filterwarnings("ignore", module="distributed")
    import distributed  # noqa: PLC0415, F401  (it sets up its loggers, once)

    for name in ("distributed", "distributed.client", "distributed.core", "distributed.comm", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
