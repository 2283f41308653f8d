"""The process that forks workers. It is itself a fork of the command's process, made while that has neither threads nor
an event loop, ZeroMQ contexts or storage sessions; and it never has any. In a program that may have them it is a new
interpreter, which takes a moment longer.

Signals that all processes of a group get, when a terminal closes or a service is stopped, are the command's business:
workers go on until it says what to do. A worker that gets SIGTERM alone ends of it.

It keeps no descriptors of the command's but stdout and stderr. When the command ends, however it ends, the nursery's
socket closes: it waits for its workers, kills those that stay, and ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable

from msgspec import Struct

from mpconv.model.errors import short_of

STARTED, NOT_STARTED, ENDED = range(3)
REPORT = struct.Struct("=iii")
"""What the nursery says: one of these; the worker's pid, or errno; its exit code, -N when signal N ended it."""

_LONGEST_ENDPOINT = 4096
_COMMANDS = {signal.SIGINT, signal.SIGUSR1}
"""Signals that are the command's business, also when all processes of the terminal, or of that name, get them."""
_ENDS = {signal.SIGTERM, signal.SIGHUP}
"""The same, where the nursery gets them too."""
_BLOCKED = _COMMANDS | _ENDS
"""Until it is known what becomes of them."""
_GRACE = 1.0
"""Seconds that workers may take to end once the command is gone."""


class ForkServer(Struct, frozen=True):
    """The command's side. A worker is asked for by its endpoint, sent to `control`, where the reports come from.

    `lifeline`: closing it tells the workers that the command is gone.
    """

    pid: int
    control: socket.socket
    lifeline: int


def fork(modules: list[str]) -> ForkServer:
    """Start a nursery that imports these modules before it forks its first worker. One that cannot be imported is left
    out: whoever needs it says so. Raises OSError.
    """
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watched, lifeline = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        pid = os.fork()
        if not pid:

            def nurse() -> None:
                control.close()
                os.close(lifeline)
                _close_all_but(theirs.fileno(), watched)
                _Nurse(theirs, watched).serve(modules, mask)

            _be(nurse)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    os.close(watched)
    return ForkServer(pid, control, lifeline)


def spawn(modules: list[str]) -> ForkServer:
    """The same in a new interpreter, whatever threads and loops there are here."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watched, lifeline = os.pipe()
    words = [sys.executable, "-m", __name__, str(theirs.fileno()), str(watched), *modules]
    for descriptor in (theirs.fileno(), watched):
        os.set_inheritable(descriptor, True)
    try:
        path = os.pathsep.join(word for word in sys.path if word)
        pid = os.posix_spawn(sys.executable, words, {**os.environ, "PYTHONPATH": path}, setsigmask=_BLOCKED)
    finally:
        theirs.close()
        os.close(watched)
    return ForkServer(pid, control, lifeline)


def _main(control: str, watched: str, *modules: str) -> None:
    """Of the new interpreter."""

    def nurse() -> None:
        _close_all_but(int(control), int(watched))
        _Nurse(socket.socket(fileno=int(control)), int(watched)).serve(list(modules), set())

    _be(nurse)


def _be(life: Callable[[], int | None]) -> None:
    """All that a forked process does, and its exit code: nothing of what its parent had on the stack is run in it."""
    code = 1
    try:
        code = life() or 0
    except BaseException as error:
        short = short_of(error)
        if short is None:
            traceback.print_exc()
        else:
            print(f"mpconv: {short}", file=sys.stderr)
    finally:
        os._exit(code)


def _be_called(name: str) -> None:
    """In `top` and `pgrep`; the command's own name, inherited, would have `pkill` find its workers."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name)


def _close_all_but(*kept: int) -> None:
    """Of what the command was started with, 0 to 2 stay."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))


class _Nurse:
    """The nursery's side."""

    def __init__(self, control: socket.socket, watched: int) -> None:
        self._control = control
        self._watched = watched
        self._workers: set[int] = set()
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        self._told = mmap.mmap(-1, 1)  # shared with the workers

    def serve(self, modules: list[str], mask: set[int]) -> None:
        """Until the command is gone, and then until no worker is left. `mask`: the signals to be blocked."""
        for number in _COMMANDS:
            signal.signal(number, signal.SIG_IGN)
        for number in _ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._tell)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask - _BLOCKED)
        _be_called("copy-nursery")
        if sys.stdin is not None:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake)
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        gc.freeze()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._woken in ready:
                self._reap()
            if self._control.fileno() in ready:
                endpoint = self._asked()
                if not endpoint:
                    break
                self._start(endpoint.decode())
        poll.unregister(self._control)
        deadline = time.monotonic() + _GRACE
        while self._workers and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self._reap()
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        for pid in self._workers:
            os.waitpid(pid, 0)

    def _tell(self, *_: object) -> None:
        self._told[0] = 1

    def _asked(self) -> bytes:
        """The endpoint of a worker that is asked for; empty once the command is gone, maybe before it read a report."""
        try:
            return self._control.recv(_LONGEST_ENDPOINT)
        except ConnectionResetError:
            return b""

    def _start(self, endpoint: str) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            pid = os.fork()
            if not pid:
                _be(lambda: self._work(endpoint))
        except OSError as error:
            self._report(NOT_STARTED, error.errno or 0, 0)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._workers.add(pid)
        self._report(STARTED, pid, 0)

    def _work(self, endpoint: str) -> int:
        _be_called("copy-worker")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._woken)
        os.close(self._wake)
        self._control.close()
        from mpconv.workers import process  # noqa: PLC0415  (imported by the nursery)

        return process.run(endpoint, self._watched, process.Ends(_ENDS, lambda: bool(self._told[0])))

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._workers.remove(pid)
            self._report(ENDED, pid, os.waitstatus_to_exitcode(status))

    def _report(self, what: int, who: int, code: int) -> None:
        with contextlib.suppress(OSError):  # the command is gone: the next thing read says so
            self._control.send(REPORT.pack(what, who, code))


if __name__ == "__main__":
    _main(*sys.argv[1:])
