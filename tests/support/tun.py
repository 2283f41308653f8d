"""tun devices, through which a process passes the packets of others; and one that only holds them for a while."""

from __future__ import annotations

import fcntl
import os
import queue
import struct
import threading
import time

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CHECKSUMS_AND_SEGMENTS = 1 | 2 | 4  # TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
_LARGEST = 10 + 65536  # virtio_net_hdr and a packet


def open_tun(name: str) -> int:
    """A new tun device in this process's namespace, which is there until the descriptor is closed.

    Each packet comes and goes with its virtio_net_hdr, so that TCP may hand over 64 KiB at a time, as to a real card:
    one read for 45 frames.
    """
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _CHECKSUMS_AND_SEGMENTS)
    return device


def hold(source: int, sink: int, delay: float) -> None:
    """Pass every packet on after `delay` seconds, in order, for ever."""
    waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_let_go, args=(waiting, sink), daemon=True).start()
    while True:
        packet = os.read(source, _LARGEST)
        waiting.put((time.monotonic() + delay, packet))


def _let_go(waiting: queue.SimpleQueue[tuple[float, bytes]], sink: int) -> None:
    while True:
        due, packet = waiting.get()
        early = due - time.monotonic()
        if early > 0:
            time.sleep(early)
        os.write(sink, packet)
