"""Links between two network namespaces, of limited speed or long: servers on this side, programs on the other."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.tun import hold, open_tun

_CLONE_NEWNET = 0x40000000
_PIECE = 1 << 18
_MIB = 1 << 20
_INSIDE = "MPCONV_OWN_NAMESPACES"


def in_own_namespaces() -> None:
    """Start the program again in network, mount and process namespaces of its own, which end with it. Needs root."""
    if os.environ.get(_INSIDE):
        _configure("mount -t tmpfs none /run", "ip link set lo up")
        return
    os.environ[_INSIDE] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.execvp("unshare", ["unshare", "-nmpf", "--kill-child", "--mount-proc", sys.executable, *sys.argv])


def _configure(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def make_interface(name: str, peer: str, address: str) -> None:
    """An interface with that address, as if plugged into something; nfs-ganesha wants one besides loopback's."""
    _configure(
        f"ip link add {name} type veth peer name {peer}",
        f"ip addr add {address}/24 dev {name}",
        f"ip link set {name} up",
        f"ip link set {peer} up",
    )


class Link:
    """A namespace for programs and what joins it to this one. `here` and `there`: the addresses at both ends.

    Only inside `in_own_namespaces`: nothing is cleaned up here.
    """

    def __init__(self, name: str, network: str) -> None:
        self.name = name
        self.here, self.there = f"{network}.1", f"{network}.2"
        self._ends = f"{name}0", f"{name}1"
        _configure(f"ip netns add {name}", f"ip -n {name} link set lo up")

    @classmethod
    def limited(cls, mbit: int) -> Link:
        """A veth pair that lets `mbit` Mbit/s of frames out at both ends."""
        link = cls("limited", "10.99.1")
        here, there = link._ends
        _configure(f"ip link add {here} type veth peer name {there} netns {link.name}")
        link._raise(mbit)
        return link

    @classmethod
    def distant(cls, round_trip: float, mbit: int) -> Link:
        """Two tun devices with a process for each way between them, that holds every packet for half of `round_trip`
        seconds. `mbit`: as of a limited one; 0: as much as goes.
        """
        link = cls("distant", "10.99.2")
        here, there = link._ends
        near = open_tun(here)
        far = link._inside(lambda: open_tun(there))
        link._raise(mbit)
        for source, sink in ((near, far), (far, near)):
            if not os.fork():
                hold(source, sink, round_trip / 2)
        return link

    def _raise(self, mbit: int) -> None:
        here, there = self._ends
        _configure(
            f"ip addr add {self.here}/24 dev {here}",
            f"ip -n {self.name} addr add {self.there}/24 dev {there}",
            f"ip link set {here} up",
            f"ip -n {self.name} link set {there} up",
        )
        if mbit:
            limit = f"root tbf rate {mbit}mbit burst 256kb latency 50ms"
            _configure(f"tc qdisc add dev {here} {limit}", f"tc -n {self.name} qdisc add dev {there} {limit}")

    def _inside(self, work: Callable[[], int]) -> int:
        """`work`'s file descriptor, opened on the programs' side by a process that goes there for it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if not os.fork():
                self.cross()
                socket.send_fds(theirs, [b"!"], [work()])
                os._exit(0)
            return socket.recv_fds(ours, 1, 1)[1][0]

    def cross(self) -> None:
        """This process, which must have one thread, to the programs' side."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{self.name}").open("rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    def speed(self, size: int = 256 * _MIB) -> float:
        """Bytes a second that one TCP connection carries: the lower of the two ways'."""
        return size / max(self._transfer(size, outwards=outwards) for outwards in (True, False))

    def _transfer(self, size: int, *, outwards: bool) -> float:
        """Seconds from the first byte's leaving to the word that the last has come."""
        with socket.create_server((self.here, 0)) as listener:
            port = listener.getsockname()[1]
            child = os.fork()
            if not child:
                os._exit(self._guarded(lambda: self._far_end(port, size, outwards=outwards)))
            connection, _ = listener.accept()
        with connection:
            started = time.monotonic()
            (_send if outwards else _receive)(connection, size)
            seconds = time.monotonic() - started
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise OSError("nothing came over the link")
        return seconds

    def _far_end(self, port: int, size: int, *, outwards: bool) -> None:
        self.cross()
        with socket.create_connection((self.here, port)) as connection:
            (_receive if outwards else _send)(connection, size)

    @staticmethod
    def _guarded(work: Callable[[], None]) -> int:
        try:
            work()
        except OSError:
            return 1
        return 0


def _send(connection: socket.socket, size: int) -> None:
    piece = bytes(_PIECE)
    for at in range(0, size, _PIECE):
        connection.sendall(memoryview(piece)[: size - at])
    connection.recv(1)


def _receive(connection: socket.socket, size: int) -> None:
    piece = bytearray(_PIECE)
    while size:
        got = connection.recv_into(piece, min(size, _PIECE))
        if not got:
            raise ConnectionResetError
        size -= got
    connection.sendall(b"!")
