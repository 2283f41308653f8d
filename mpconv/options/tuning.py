"""How much to do at a time, where nobody has said it: worker processes, and buffers in flight. Pure."""

from __future__ import annotations

from typing import Protocol

from mpconv.model.units import MiB, human

BUFFER = 2 * MiB
_WORTH_A_WORKER = 64 * MiB
_MOST_WORKERS = 8
_REQUESTS_EACH = 4
_FEWEST_REQUESTS = 8
_FASTEST = 3125 * 10**6
"""Bytes a second, 25 Gbit/s: on a distant server's way there may be as much as such a link carries in a round trip.
With what 10 Gbit/s carry, copies at 5 ms took 7 % longer than with the best setting; more than this gains nothing.
"""
_MOST_UNDER_WAY = 64
"""Buffers more for that, at most: 128 MiB of memory."""
_FAR = 0.004
"""Seconds of the round trips from which some workers more than cores are worth their start, with more in flight each.

On two cores, 5 ms away and out of order, two workers with 11 buffers each took 3.6 s, and four with 16 each 2.7 s, with
a quarter less processor time: what comes over a connection is more at a time. At 1 Gbit/s it makes no difference.
"""
_FEWEST_WORKERS_FAR = 4
_REQUESTS_EACH_FAR = 16


class CopySettings(Protocol):
    """How much to do at a time. None: what suits the image and the machine."""

    @property
    def requests(self) -> int | None: ...
    @property
    def workers(self) -> int | None: ...


def workers_for(
    size: int,
    cores: int,
    options: CopySettings,
    *,
    alone: bool = False,
    compressing: bool = False,
    round_trips: float = 0.0,
    buffer_size: int = BUFFER,
) -> tuple[int, int]:
    """Worker processes, and buffers in flight over all of them, for an image of `size` bytes.

    More than 8 processes on one host gain nothing on one server, and a small image is copied before a second one has
    started. `alone`: in order, over a connection that keeps the order, one process writes at a time, and alone it need
    not stop between one lease and the next. qemu-img's 8 requests are the least in flight; each process drives four
    more without effort. `compressing`: every core has a buffer, and every process two more, that are read or written
    meanwhile. `round_trips`: seconds that a buffer waits for answers, of the source and then of the target: what a
    fast link carries in that time is in flight besides, so that distance alone makes no copy slower; far away there are
    four processes even on fewer cores. Where nobody else would work, one does even if none was wanted.
    """
    far = round_trips >= _FAR and not alone
    count = options.workers
    if not count:
        most = min(max(cores, _FEWEST_WORKERS_FAR if far else 0), _MOST_WORKERS)
        count = 1 if alone else max(1, min(most, size // _WORTH_A_WORKER + 1))
    wish = max(_FEWEST_REQUESTS, _REQUESTS_EACH * count, cores + 2 * count if compressing else 0)
    under_way = min(int(_FASTEST * round_trips / buffer_size), _MOST_UNDER_WAY)
    if far:
        under_way = max(under_way, min(_REQUESTS_EACH_FAR * count - wish, _MOST_UNDER_WAY) * BUFFER // buffer_size)
    wish += under_way
    total = options.requests if options.requests is not None else wish
    return min(count, total), total


def words(workers: int, requests: int, buffer_size: int, cores: int, source: float, target: float) -> str:
    """What was chosen and why, for `-v`. `source` and `target`: seconds of a round trip; 0: nothing is asked over a
    network.
    """
    several = "worker" if workers == 1 else "workers"
    why = [f"{cores} core{'' if cores == 1 else 's'}"]
    why += [f"{1000 * time:.1f} ms to the {name}" for name, time in (("source", source), ("target", target)) if time]
    return f"{workers} {several}, {requests} buffers of {human(buffer_size)} in flight: {', '.join(why)}"
