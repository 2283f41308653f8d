"""Hosts for workers: network namespaces, each with a link to the coordinator and another one to the storage.

Both ends of the links on this side are in the namespace of the process that runs tests; its servers listen at STORAGE,
and the coordinator at CONTROL. Needs namespaces.enter().
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

CONTROL, STORAGE = "10.96.0.1", "10.97.0.1"
_ALL_PROTOCOLS = 3
_IPV4, _TCP = 0x0800, 6
_SNAPLEN = 1 << 17
_numbers = itertools.count(1)


def _configure(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def add_addresses() -> None:
    """Where coordinator and servers listen."""
    for address in (CONTROL, STORAGE):
        _configure(f"ip addr replace {address}/32 dev lo")


class Host:
    """A namespace. `to_control` and `to_storage` are this side's interfaces of its links."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"host{number}"
        self.to_control, self.to_storage = f"c{number}", f"s{number}"
        self.storage_address = f"10.97.{number}.2"
        add_addresses()
        _configure(f"ip netns add {self.name}", f"ip -n {self.name} link set lo up")
        for interface, net, server in ((self.to_control, 96, CONTROL), (self.to_storage, 97, STORAGE)):
            _configure(
                f"ip link add {interface} type veth peer name {interface} netns {self.name}",
                f"ip addr add 10.{net}.{number}.1/24 dev {interface}",
                f"ip link set {interface} up",
                f"ip -n {self.name} addr add 10.{net}.{number}.2/24 dev {interface}",
                f"ip -n {self.name} link set {interface} up",
                f"ip -n {self.name} route add {server}/32 via 10.{net}.{number}.1",
            )

    def run(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a program there; what it says goes to the end of `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], stdout=output, stderr=output, start_new_session=True
            )

    def slow_storage(self, mbit: int) -> None:
        """So many Mbit/s go out to the storage from now on, and hardly anything waits in the interface."""
        _configure(
            f"tc -n {self.name} qdisc replace dev {self.to_storage} root tbf rate {mbit}mbit burst 64kb latency 20ms"
        )

    def cut(self, *interfaces: str) -> None:
        """Take links down."""
        for interface in interfaces:
            _configure(f"ip link set {interface} down")

    def mend(self, *interfaces: str) -> None:
        """And up again."""
        for interface in interfaces:
            _configure(f"ip link set {interface} up")

    def heard_from_storage(self) -> int:
        """Bytes that came to it so far, headers and all."""
        counts = Path("/proc/self/net/dev").read_text().partition(f" {self.to_storage}:")[2].split()
        return int(counts[8])

    def processes(self, name: str | None = None) -> list[int]:
        """Those that run there, or those of that name."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False).stdout
        found = []
        for pid in pids.split():
            with suppress(OSError):  # it has just ended
                if name in (None, Path(f"/proc/{pid}/comm").read_text().strip()):
                    found.append(int(pid))
        return found

    def close(self) -> None:
        """What still runs there is ended, by pid."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        _configure(f"ip netns del {self.name}")


@contextmanager
def host() -> Iterator[Host]:
    """One that is removed at the end."""
    made = Host()
    try:
        yield made
    finally:
        made.close()


@dataclass
class Recording:
    """What came and went over an interface of this side. `kept`: the TCP payload, if it is to be kept; `said`: what of
    it came from the other side, by the port it came from; `sent`: when, by the clock of time.monotonic, how many bytes
    of that.
    """

    interface: str
    keep: bool = False
    kept: bytearray = field(default_factory=bytearray)
    said: dict[int, bytearray] = field(default_factory=dict)
    sent: list[tuple[float, int]] = field(default_factory=list)

    def __enter__(self) -> Recording:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.bind((self.interface, 0))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _record(self) -> None:
        while not self._over.is_set():
            try:
                frame, about = self._socket.recvfrom(_SNAPLEN)
            except (TimeoutError, OSError):  # nothing, or the link is down
                continue
            payload = _payload(frame)
            if payload and about[2] != socket.PACKET_OUTGOING:
                self.sent.append((time.monotonic(), len(payload)))
                if self.keep:
                    self.said.setdefault(_port(frame), bytearray()).extend(payload)
            if payload and self.keep:
                self.kept += payload

    def sent_after(self, moment: float) -> int:
        """Bytes of payload that came from the other side since then."""
        return sum(size for when, size in self.sent if when > moment)


def _port(frame: bytes) -> int:
    """That a TCP segment comes from."""
    return int.from_bytes(frame[14 + (frame[14] & 15) * 4 :][:2])


def _payload(frame: bytes) -> bytes:
    if len(frame) < 54 or struct.unpack_from("!H", frame, 12)[0] != _IPV4 or frame[23] != _TCP:
        return b""
    tcp = 14 + (frame[14] & 15) * 4
    length = struct.unpack_from("!H", frame, 16)[0]  # 0 for segments that the interface is to cut up
    return frame[tcp + (frame[tcp + 12] >> 4) * 4 : 14 + length if length else len(frame)]
