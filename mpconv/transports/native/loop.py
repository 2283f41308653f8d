"""Drives a C library's non-blocking connection (libnfs, libiscsi) on the asyncio loop.

The library's service call is repeated while its descriptor stays readable: a poll costs about one microsecond, a
turn of the event loop about fifteen, and a megabyte arrives in many pieces.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable

from mpconv.model.units import KiB

_TURNS = 32
_TICK = 1.0
_MANY = 256 * KiB


_RESET = struct.pack("ii", 1, 0)
_fenced = False


def be_fenced() -> None:
    """From now on a connection of this process that ends, as when the process is killed, is reset: the kernel drops
    what it was still to send. Otherwise it would go on sending for minutes.
    """
    global _fenced  # noqa: PLW0603  (a fact about the process)
    _fenced = True


class Pump:
    """`service(events)` returns below 0 when the connection is lost; `lost()` is then called, once. Likewise when
    `silent()`, which is asked once a second, finds that answers do not come.
    """

    def __init__(
        self,
        fd: int,
        which_events: Callable[[], int],
        service: Callable[[int], int],
        lost: Callable[[], None],
        silent: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._which = which_events
        self._service = service
        self._lost = lost
        self._silent = silent
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._mark = 1
        self._woken = True
        self._starved = False
        self._kicked = False
        self._writing = False
        self._open = True
        self._socket = socket.socket(fileno=fd)
        if _fenced:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._loop.add_reader(fd, self._wake)
        self._timer = self._loop.call_later(_TICK, self._tick)

    def kick(self) -> None:
        """Something was queued: send it when the loop turns."""
        if not self._kicked and self._open:
            self._kicked = True
            self._loop.call_soon(self._send)

    def expect(self, size: int) -> None:
        """At least `size` bytes of answers are to come: be woken for the first many of them, not the first few."""
        mark = _MANY if size >= _MANY and not self._starved else 1
        if mark != self._mark and self._open:
            self._mark = mark
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)

    def _send(self) -> None:
        self._kicked = False
        if self._open and self._which() & select.POLLOUT:
            self._serve(select.POLLOUT)
        self._watch()

    def _wake(self) -> None:
        self._woken = True
        self._turn()

    def _turn(self) -> None:
        for _ in range(_TURNS):
            if not self._open:
                return
            self._serve(select.POLLIN | (self._which() & select.POLLOUT))
            if not self._open or not self._poll.poll(0):
                break
        self._watch()

    def _tick(self) -> None:
        if self._open:
            marked = self._mark > 1
            if marked and not self._woken and _unread(self._socket):
                # Answers that are shorter than what was asked for: all that is to come lies here, and nobody was woken.
                self._starved = True
                self.expect(0)
            self._woken = False
            self._serve(select.POLLIN if marked else 0)
            if self._open and self._silent():
                self.stop()
                self._lost()
            self._watch()
            if self._open:
                self._timer = self._loop.call_later(_TICK, self._tick)

    def _serve(self, events: int) -> None:
        corked = events & select.POLLOUT
        if corked:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        if self._service(events) < 0:
            self.stop()
            self._lost()
        elif corked:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def _watch(self) -> None:
        if not self._open:
            return
        wanted = bool(self._which() & select.POLLOUT)
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._fd, self._turn)
            else:
                self._loop.remove_writer(self._fd)

    def stop(self) -> None:
        """Leave the descriptor alone from here on."""
        if self._open:
            self._open = False
            self._timer.cancel()
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._socket.detach()


def _unread(connection: socket.socket) -> int:
    """Bytes that have arrived."""
    found = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, found)
    return found[0]
