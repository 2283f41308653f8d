"""What a faulty target offers, what it counted, and the loop that serves it, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.servers import LOOPBACK, free_port

if TYPE_CHECKING:
    from tests.support.faulty_target.session import Session

IQN = "iqn.2020-01.org.fake:t"
_WAIT_SECONDS = 10.0

Status = tuple[int, bytes]
"""A SCSI status and its sense data."""

Answer = str | bytes | tuple[Any, ...] | None
"""What `on_command` may give: None (serve it), "close" (drop the connection), "hang" (no answer), ("delay", seconds),
bytes (the data instead of its own), (status, sense), ("after", status, sense): that, although it was carried out."""

Refusal = tuple[int, int, dict[str, str]]
"""A login's status class, its detail, and further text keys."""


def sense(key: int, asc: int, ascq: int = 0, code: int = 0x70) -> bytes:
    """Sense data: fixed, or the descriptor format for code 0x72 and 0x73."""
    if code in {0x72, 0x73}:
        return bytes([code, key, asc, ascq, 0, 0, 0, 0])
    return bytes([code, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0])


CHECK_CONDITION, BUSY, TASK_SET_FULL = 2, 8, 0x28


def unit_attention(asc: int, ascq: int) -> Status:
    """A CHECK CONDITION that tells news: the command was not carried out."""
    return CHECK_CONDITION, sense(6, asc, ascq)


@dataclass(kw_only=True, eq=False)
class FaultyTarget:
    """An iSCSI target over `path` that does what it is told, faults included; `with FaultyTarget(path=...) as target`.

    Every name in `luns` is the same file, and every target name is answered. The hooks run in the target's thread:
    `on_command(target, session, name, cdb, n)` before a command is served (`n`: the how-manieth of that name),
    `on_login(target, session, keys)` at each login request, `on_status(target, session, name, status)` before a status
    without a fault of `on_command` leaves. All knobs may be changed while it runs.
    """

    path: Path
    size: int = 0
    host: str = LOOPBACK
    port: int = 0
    block: int = 512
    thin: bool = True
    lbprz: bool = True
    page_lbprz: bool | None = None
    lbpu: bool = True
    lbpws: bool = True
    b0: bool = True
    wp: bool = False
    luns: set[int] = field(default_factory=lambda: {1})
    max_xfer: int = 0
    max_unmap: int = 0xFFFFFFFF
    unmap_desc: int = 1
    gran: int = 1
    align: int = 0
    told_gran: int | None = None
    max_ws: int = 0
    digest: str = "None"
    data_digest: str = "None"
    mrdsl: int = 262144
    first: int = 65536
    burst: int = 262144
    initial_r2t: str = "Yes"
    imm: str = "No"
    window: int = 128
    redirect: str | None = None
    vendor: bytes = b"FAKE"
    serial: bytes = b"SER0001"
    naa: bytes | None = None
    eui: bytes | None = None
    name: bytes | None = None
    t10: bytes | None = None
    on_command: Callable[[FaultyTarget, Session, str, bytes, int], Answer] | None = None
    on_login: Callable[[FaultyTarget, Session, dict[str, str]], Refusal | None] | None = None
    on_status: Callable[[FaultyTarget, Session, str, Status], Status | None] | None = None

    counts: Counter[str] = field(default_factory=Counter, init=False)
    bytes_written: int = field(default=0, init=False)
    logins: int = field(default=0, init=False)
    said: list[str] = field(default_factory=list, init=False)
    sessions: set[Session] = field(default_factory=set, init=False)
    fd: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        self.size = self.size or self.path.stat().st_size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None

    @property
    def portal(self) -> str:
        """Host and port as in a URL or TargetAddress."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, lun: int = 1, *, iqn: str = IQN, host: str | None = None) -> str:
        """For mpconv and qemu-img. `host`: by another name."""
        return f"iscsi://{self.portal if host is None else f'{host}:{self.port}'}/{iqn}/{lun}"

    @property
    def full_sessions(self) -> int:
        """Sessions that are past their login."""
        return sum(session.full for session in list(self.sessions))

    def designators(self) -> bytes:
        """The body of VPD page 0x83: by default one NAA made of the serial."""
        naa = self.naa
        if naa is None and self.eui is self.name is self.t10 is None:
            naa = b"\x60\x01\x40\x5f" + self.serial.ljust(12, b"0")[:12]
        kinds = ((1, 3, naa), (1, 2, self.eui), (3, 8, self.name), (2, 1, self.t10))
        return b"".join(bytes([code, kind, 0, len(body)]) + body for code, kind, body in kinds if body is not None)

    def say(self, *what: object) -> None:
        """For a test that wants to know what happened."""
        self.said.append(" ".join(map(str, what)))

    def __enter__(self) -> FaultyTarget:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Serve; also again after `kill`."""
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(self.fd).st_size < self.size:
            os.ftruncate(self.fd, self.size)
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(up)), daemon=True)
        self._thread.start()
        if not up.wait(_WAIT_SECONDS):
            raise TimeoutError(f"nobody serves {self.portal}")

    def kill(self) -> None:
        """End at once: every connection is reset."""
        if self._thread is not None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(_WAIT_SECONDS)
            self._thread = None
            os.close(self.fd)

    def drop(self) -> None:
        """Reset every connection and go on serving."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for session in list(self.sessions):
            session.reset()

    async def _serve(self, up: threading.Event) -> None:
        from tests.support.faulty_target.session import Session  # noqa: PLC0415 (they know each other)

        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        server = await asyncio.start_server(
            lambda reader, writer: Session(self, reader, writer).run(),
            self.host,
            self.port,
            family=family,
            limit=1 << 22,
        )
        up.set()
        await self._end.wait()
        server.close()
        self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Until it holds; TimeoutError with `what` in it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)
