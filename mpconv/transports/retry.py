"""How long, and how often, a server that does not answer is tried again. Pure, but for the waiting.

The first failure starts an outage, the next success ends it; `--retry-for` is how long one may last. Between attempts
lies a random time below a limit that doubles (full jitter), so that the connections of many workers do not all come
back in the same moment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from mpconv.model.errors import Absent, Busy, Gone, MpconvError, Restarted, Retryable, Unreachable

_T = TypeVar("_T")
Tell = Callable[[str], None]
"""Is told in one line what is wrong and what is done about it."""


ANSWERS = "it answers again"
"""How such a line ends when nothing is wrong any more."""


def silently(text: str) -> None:
    """Nobody is told."""


Attempt = Callable[[], Awaitable[_T]]

_SHORTEST, _LONGEST = 0.1, 5.0
_ABSENT_SECONDS = 15.0
"""tgtd listens before its targets are configured, NFS servers before their exports are there."""
_SAY_AGAIN = 10.0


class Retry(Struct, frozen=True):
    """`seconds`: how long an outage may last; 0: the first failure is final."""

    seconds: float = 0.0


AT_ONCE = Retry()


class Throttled:
    """Passes lines on to `tell`, but those that differ only in what is done about it at most every ten seconds."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._said: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        trouble, now = text.rpartition(": ")[0], self._clock()
        if now - self._said.get(trouble, -_SAY_AGAIN) >= _SAY_AGAIN:
            self._said[trouble] = now
            self._tell(text)


class Outage:
    """From a first failure to the next success. Times are in seconds, on a clock of the caller's.

    `lost_data`: a server that was started again is in it. That it takes writes proves nothing then, only that it makes
    them durable: one that loses them time and again would be tried for ever.
    """

    def __init__(self, retry: Retry, chance: Callable[[], float] = random.random) -> None:
        self._retry = retry
        self._chance = chance
        self.over()

    def over(self) -> None:
        """It works: the next failure is a first one."""
        self._since: float | None = None
        self._failures = 0
        self._absent_since: float | None = None
        self._said_at: float | None = None
        self.lost_data = False

    @property
    def again(self) -> bool:
        """Whether it has failed before."""
        return self._since is not None

    def failed(self, error: MpconvError, now: float) -> float | None:
        """For how long to wait before it is tried again; None: this was the last time."""
        if self._since is None:
            self._since = now
        left = self._since + self._retry.seconds - now
        if isinstance(error, Absent):
            if self._absent_since is None:
                self._absent_since = now
            left = min(left, self._absent_since + _ABSENT_SECONDS - now)
        elif isinstance(error, Retryable | Unreachable):
            self._absent_since = None
            self.lost_data |= isinstance(error, Restarted)
        else:
            return None
        if left <= 0:
            return None
        most = min(_LONGEST, _SHORTEST * float(1 << min(self._failures, 16)))
        self._failures += 1
        return min(left, self._chance() * most)

    def words(self, error: MpconvError, now: float) -> str | None:
        """What people are told of a failure that is tried again; None while it was said not long ago."""
        if self._since is None or (self._said_at is not None and now - self._said_at < _SAY_AGAIN):
            return None
        self._said_at = now
        left = max(0, round(self._since + self._retry.seconds - now))
        what = "does not answer"
        if isinstance(error, Absent | Restarted):
            what = "is not there" if isinstance(error, Absent) else "has lost what was written"
        return f"'{error.image}' {what} ({error.reason or error.why}): trying again for {left // 60}:{left % 60:02}"

    def given_up(self, error: MpconvError, now: float) -> MpconvError:
        """The error to end with, never a Retryable one: how long it was tried is added, if it was at all."""
        if not isinstance(error, Retryable | Unreachable | Absent):
            return error
        if not self._retry.seconds and not isinstance(error, Retryable):
            return error
        tried = 0.0 if self._since is None else now - self._since
        tail = f" (given up after {tried:.0f} seconds)" if self._retry.seconds else ""
        gone = Gone(error.why + tail, operation=error.operation, image=error.image, offset=error.offset)
        gone.reason = (error.reason or error.why) + tail
        return gone


async def keep_trying(attempt: Attempt[_T], retry: Retry, tell: Tell, outage: Outage | None = None) -> _T:
    """What `attempt` returns, once it works. Raises what is final: at once, or when it was tried for long enough.

    `outage`: one that may have begun before and is not over when the attempt works, because that alone proves little;
    the caller ends it.
    """
    clock = asyncio.get_running_loop().time
    outage = outage or Outage(retry)
    while True:
        try:
            return await attempt()
        except (Retryable, Unreachable, Absent) as error:
            now = clock()
            wait = outage.failed(error, now)
            if wait is None:
                raise outage.given_up(error, now) from error
            text = outage.words(error, now)
            if text is not None:
                tell(text)
        await asyncio.sleep(wait)


class Patience:
    """Of one request that a server puts off, for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._outage = Outage(Retry(seconds))

    async def wait(self, at_most: float = _LONGEST) -> bool:
        """A moment of so many seconds at most; False: it was long enough."""
        wait = self._outage.failed(_PUT_OFF, asyncio.get_running_loop().time())
        if wait is None:
            return False
        await asyncio.sleep(min(wait, at_most))
        return True


_PUT_OFF = Busy("")
