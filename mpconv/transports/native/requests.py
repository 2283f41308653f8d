"""Requests under way in a C library: a number travels as the callback's private pointer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from mpconv.model.errors import MpconvError, UsageError, internal

_SECONDS = 60.0
_VARIABLE = "MPCONV_REQUEST_SECONDS"


def request_seconds() -> float:
    """How long a server may take for its next answer: 60, or what MPCONV_REQUEST_SECONDS says, for slow ones. The
    libraries' own time limits are the same. UsageError when that is no number above 0.
    """
    text = os.environ.get(_VARIABLE)
    if not text:
        return _SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{_VARIABLE} is '{text}': it must be a number of seconds")
    return seconds


def _raise(raised: BaseException) -> None:
    """A KeyboardInterrupt that came while a callback ran: out of the event loop with it."""
    raise raised


class Batch:
    """Several requests that end together: awaited once, the first error wins, and only when all have ended."""

    __slots__ = ("error", "future", "left")

    def __init__(self) -> None:
        self.left = 0
        self.error: MpconvError | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(self, error: MpconvError | None) -> None:
        """One request has ended."""
        self.left -= 1
        if error is not None and self.error is None:
            self.error = error
        if self.left == 0 and not self.future.done():
            if self.error is not None:
                self.future.set_exception(self.error)
            else:
                self.future.set_result(None)


class Watchdog:
    """Notices a server that has fallen silent: something is awaited, and `seconds` have gone by since that began and
    since the last answer.
    """

    __slots__ = ("_since", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since = 0.0

    def heard(self) -> None:
        """An answer has come, or the first request went out."""
        self._since = time.monotonic()

    def silent(self) -> bool:
        """Whether it has been too long, if something is awaited."""
        return time.monotonic() - self._since > self.seconds

    @property
    def words(self) -> str:
        """A clause, but for who."""
        return f"has not answered for {self.seconds:g} seconds"


class Requests:
    """The table of what is under way: number -> (batch, what to do with the answer)."""

    def __init__(self) -> None:
        self._under_way: dict[int, tuple[Batch, Callable[..., MpconvError | None], Any]] = {}
        self._last = 0
        self.watchdog = Watchdog(request_seconds())

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, batch: Batch, finish: Callable[..., MpconvError | None], keep: Any) -> int:
        """A number for a request; `keep` stays referenced until it has ended."""
        if not self._under_way:
            self.watchdog.heard()
        self._last += 1
        batch.left += 1
        self._under_way[self._last] = (batch, finish, keep)
        return self._last

    def answered(self, number: int, *answer: Any) -> None:
        """The library called back. No exception may cross into C, so it becomes the request's error."""
        entry = self._under_way.pop(number, None)
        if entry is None:
            return
        self.watchdog.heard()
        batch, finish, _ = entry
        try:
            error = finish(*answer)
        except BaseException as raised:
            error = internal(raised, "a transport")
            if not isinstance(raised, Exception):
                asyncio.get_running_loop().call_soon(_raise, raised)
        batch.ended(error)

    def silent(self) -> bool:
        """Whether the watchdog ends the connection."""
        return bool(self._under_way) and self.watchdog.silent()

    def fail_one(self, number: int, error: MpconvError) -> None:
        """The library refused to start the request."""
        entry = self._under_way.pop(number, None)
        if entry is not None:
            entry[0].ended(error)

    def fail_all(self, error: MpconvError) -> None:
        """The connection is gone: nothing will call back any more."""
        entries, self._under_way = self._under_way, {}
        for batch, _, _ in entries.values():
            batch.ended(error)
