"""Whether anybody listens at a host's port, and how long a round trip takes."""

from __future__ import annotations

import asyncio
import contextlib

from mpconv.inspection.doctor.findings import Examination
from mpconv.transports.native.threads import beside
from mpconv.transports.reachability import why_unreachable

_FIXES = {
    "resolved": "write the host's address, or see to its name (/etc/hosts, DNS)",
    "refused": "start the server, or name the port where it listens",
    "no answer": "see whether the host is up, and whether a firewall drops what is sent to this port",
}


async def round_trip(host: str, port: int, seconds: float) -> float | None:
    """Seconds to connect, the shortest of three; None when it does not work."""
    clock = asyncio.get_running_loop().time
    times = []
    for _ in range(3):
        started = clock()
        try:
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            return None
        times.append(clock() - started)
        writer.transport.abort()
    return min(times)


async def reached(found: Examination, host: str, port: int, seconds: float, *, what: str, fix: str = "") -> bool:
    """Whether there is a server; a problem when not. `what` it should be; `fix`: where nobody listens."""
    time = await round_trip(host, port, seconds)
    if time is not None:
        found.round_trip = time
        return True
    why: str | None = None
    with contextlib.suppress(TimeoutError):
        why = await beside(lambda: why_unreachable(host, [port]), seconds=seconds)
    why = why or f"no answer from {host} port {port}"
    found.problem("unreachable", f"{what} cannot be reached: {why}", _fix(why, fix))
    return False


def _fix(why: str, fix: str) -> str:
    for word, words in _FIXES.items():
        if word in why:
            return fix if word == "refused" and fix else words
    return "see whether there is a route to that host"
