"""SIGINT, SIGTERM and SIGHUP, heard on the event loop; a signal that comes twice at once is heard once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_WISH = 0.3
"""Seconds: who stops a job with a key or a program does not do so twice in less."""


class Wishes:
    """What signals ask for. Those that the process was started to ignore, as by nohup(1), stay ignored. `last`: the
    process ends with what they interrupt, so that it passes over the rest of a wish: a program hears the next Ctrl-C.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.last = last
        self._since: dict[bool, float] = {}
        self._numbers: tuple[signal.Signals, ...] = ()

    def begin(self, hear: Callable[[int], None]) -> None:
        """`hear` gets the number of each, once for each wish, on the running loop."""
        loop = asyncio.get_running_loop()

        def heard(number: int) -> None:
            typed = number == signal.SIGINT
            last = self._since.get(typed)
            if last is None or loop.time() - last > ONE_WISH:
                self._since[typed] = loop.time()
                hear(number)

        self._since = {}
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._numbers = tuple(number for number in _SIGNALS if not (nohup and number == signal.SIGHUP))
        for number in self._numbers:
            loop.add_signal_handler(number, heard, number)

    def end(self) -> None:
        """From now on they do what they do by default, unless the rest of one that was heard may be still to come."""
        loop = asyncio.get_running_loop()
        for number in self._numbers:
            loop.remove_signal_handler(number)
            if self.last and (number == signal.SIGINT) in self._since:
                signal.signal(number, signal.SIG_IGN)
