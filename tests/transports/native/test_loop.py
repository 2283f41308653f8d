"""The pump over a socket pair; the library behind it is played by a few lines, for what no server does on demand."""

from __future__ import annotations

import asyncio
import select
import socket

import pytest

from mpconv.transports.native import loop as pumps
from mpconv.transports.native.loop import Pump


class Library:
    """Wants to send after a call without events, as libiscsi does when an R2T came between two looks."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.theirs = socket.create_connection(server.getsockname())
            self.ours, _ = server.accept()
        self.ours.setblocking(False)
        self.wants_out = False
        self.served: list[int] = []
        self.sent = asyncio.Event()

    def which_events(self) -> int:
        return select.POLLIN | (select.POLLOUT if self.wants_out else 0)

    def service(self, events: int) -> int:
        self.served.append(events)
        if events & select.POLLOUT:
            self.wants_out = False
            self.sent.set()
        elif not events:
            self.wants_out = True
        return 0


def test_what_a_tick_finds_to_send_is_sent():
    async def main() -> None:
        library = Library()
        pump = Pump(library.ours.fileno(), library.which_events, library.service, lambda: None, lambda: False)
        async with asyncio.timeout(10):
            await library.sent.wait()
        assert library.served[0] == 0 and select.POLLOUT & library.served[1]
        pump.stop()
        assert library.ours.fileno() >= 0, "the library's descriptor is left alone"

    asyncio.run(main())


@pytest.mark.parametrize("enough", [False, True])
def test_who_waits_for_more_than_comes_stops_waiting_for_so_much(enough: bool) -> None:
    """Where answers come shorter than they were asked for; else it goes on being woken for many bytes at once."""

    async def main() -> int:
        library = Library()
        served = asyncio.Event()

        def service(events: int) -> int:
            if events & select.POLLIN:
                library.ours.recv(1 << 20)
                served.set()
            return 0

        pump = Pump(library.ours.fileno(), library.which_events, service, lambda: None, lambda: False)
        async with asyncio.timeout(30):
            for _ in range(2):
                pump.expect(1 << 20)
                served.clear()
                await asyncio.to_thread(library.theirs.sendall, bytes((1 << 18) + 1 if enough else 1000))
                await served.wait()
        pump.expect(1 << 20)
        mark = library.ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        pump.stop()
        return mark

    assert (asyncio.run(main()) > 1) is enough


def test_a_lost_connection_is_told_once_and_nothing_is_served_after_it():
    async def main() -> None:
        library = Library()
        told = asyncio.Event()
        calls = []

        def service(events: int) -> int:
            library.served.append(events)
            return -1

        def lost() -> None:
            calls.append(1)
            told.set()

        pump = Pump(library.ours.fileno(), library.which_events, service, lost, lambda: False)
        library.theirs.close()
        async with asyncio.timeout(10):
            await told.wait()
        pump.kick()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (calls, len(library.served)) == ([1], 1)

    asyncio.run(main())


@pytest.mark.parametrize("fenced", [False, True])
def test_what_a_fenced_process_has_not_sent_yet_is_dropped_with_its_connection(monkeypatch, fenced):
    """Otherwise the kernel goes on sending it when the descriptor, or the process, is gone."""

    async def main() -> int:
        monkeypatch.setattr(pumps, "_fenced", False)
        if fenced:
            pumps.be_fenced()
        library = Library()
        pump = Pump(library.ours.fileno(), library.which_events, library.service, lambda: None, lambda: False)
        queued = 0
        try:
            while True:
                queued += library.ours.send(bytes(1 << 16))
        except BlockingIOError:
            pump.stop()
            library.ours.close()
        library.theirs.settimeout(10)
        arrived = 0
        try:
            while data := library.theirs.recv(1 << 20):
                arrived += len(data)
        except ConnectionResetError:
            pass
        return queued - arrived

    lost = asyncio.run(main())
    assert lost > 0 if fenced else lost == 0
