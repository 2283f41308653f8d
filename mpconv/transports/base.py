"""The contract of every transport, in one place.

A transport is a connection to a byte store of `size` bytes. All of its operations may be called at the same time,
as often as one likes, from coroutines of one event loop; the transport keeps them in flight together.

- **Buffers.** The caller's buffer is used in place: it must stay untouched from the call until its coroutine has
  ended. When a connection is lost or closed, every request that is under way ends with an error first. To cancel a
  coroutine does not recall its request: then the buffer stays in use until `close()` has returned.
- **Short transfers** never come out: a request is done whole, or it raises.
- **Bounds.** Reads, and writes where the size is fixed, lie inside `size`; anything else is `Fatal` and changes
  nothing. A request of no bytes does nothing.
- **Errors** are `Retryable` (try again on a new connection) or `Fatal`, and carry operation, image and offset.
- **What passes by itself** (a server that is busy, or not ready yet) is asked again for `Opening.patience` seconds.
- **A silent server** counts as a lost connection: `requests.request_seconds` without any answer.
- **Nothing reconnects** behind the caller's back, but for `lasting.ReconnectingReader`, which only reads.
- `zero()` leaves zeros, and may give the room they took back: `True` when it did, `False` when there is no cheap
  honest way and the caller must write zero bytes itself. What works is found out once and remembered.
- `copy_from()` has the bytes copied where they lie, without passing through this process: `True` when all of them
  were, `False` when that cannot be and the caller must read and write: some may have been copied then, and where
  `copy_may_spoil` something else may have been put there.
- `block_status()` may call zeros data, never data zeros; it raises `StatusWithdrawn` when it finds that it did, or that
  what it is told cannot be true: what it, or another connection to the same store, said before is to be forgotten then.
- `flush()` returns when everything that was written through *this* connection is durable.
- `discard()` removes what this connection made, so that nobody takes it for an image: called when nobody writes any
  more, and before `close()`. What was there before stays, emptied or not, and so does what came in its place.
- `close()` may be called twice, and after errors. Every request after it raises `Retryable`.
- **To open** raises `NoSuchImage` where nothing exists under the name, so that only then something is created;
  `Absent` where a server does not know the name, and `Unreachable` where none answers: either may be better later.
"""

from __future__ import annotations

import abc
import enum
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct

from mpconv.model.errors import Fatal, MpconvError
from mpconv.model.extent import Extent
from mpconv.model.units import SECTOR, MiB, align_up
from mpconv.transports.identity import Facts, File
from mpconv.transports.redaction import redacted

Buffer = memoryview
_LARGEST = (1 << 63) - 1


class Access(enum.Enum):
    """What a connection is for."""

    READ = "read"
    WRITE = "write"


class Sharing(enum.Enum):
    """What other programs may do to an image while it is read."""

    NOTHING = "nothing"
    WRITES = "writes"
    ALL = "all"


LEAST_PATIENCE = 1.5


Judge = Callable[["Transport"], Awaitable[None]]


class Opening(Struct, frozen=True):
    """How a store is opened; what a transport knows nothing of, it passes over.

    `direct`: past the page cache. `locked`: take QEMU's locks on the image, or be refused when another program holds
    them. `preallocation`: "off", "falloc" or "full", of what is created. `growing`: writes may go past the end, where
    that makes the store longer. `patience`: for how many seconds a request is made again that the server puts off.
    `beneath`: as Place's. `judge`: of what is made or replaced: called with what is there, before any of it is lost.
    `replaces`: the same for who cannot call: the marks of what was there, none when there was nothing; None: whatever.
    """

    direct: bool = False
    locked: bool = False
    preallocation: str = "off"
    growing: bool = False
    patience: float = LEAST_PATIENCE
    beneath: str | None = None
    judge: Judge | None = None
    replaces: dict[str, str] | None = None


AS_USUAL = Opening()


class Limits(Struct, frozen=True):
    """What the server likes, in bytes. `alignment`: writes off these boundaries cost a read first. `optimal_write`: 0
    for no wish.
    """

    alignment: int = 1
    largest_read: int = MiB
    largest_write: int = MiB
    optimal_write: int = 0


class Fingerprint(Struct, frozen=True):
    """By what a store is known again later: facts for people, each under what it tells ("its inode": "12").

    `same`: what stays as long as it is that store, whatever is written into it. `content`: what changes with its bytes.
    """

    same: dict[str, str]
    content: dict[str, str]


class Transport(abc.ABC):
    """A byte store. `name` is its URL without credentials; `identity` is equal for two names of one store."""

    name: str
    identity: tuple[object, ...]
    size: int
    version: tuple[object, ...] = ()
    """Another one when somebody has changed what is stored, or put something else in its place, as far as that is cheap
    to see. It is that of the moment when the store was opened."""
    stamp: File | None = None
    """Of a regular file: what it was when it was opened. It is another one when somebody has changed it since."""
    marks: dict[str, str] = {}  # noqa: RUF012  (never changed in place)
    """By what whoever opens it again knows it, in another process or on another host too: as a Fingerprint's `same`."""
    limits: Limits = Limits()
    round_trip: float = 0.0
    """Seconds that a small request took when it was opened; 0 where nothing is asked over a network."""
    zero_initialised: bool = False
    """A store that was just created and reads as zeros."""
    fixed_size: bool = True
    """False: writes of any size are taken (null:)."""
    copy_may_spoil: bool = False
    rewrites: int = 1
    """Where a write ends inside a block of so many bytes, the block is read and written back whole: two processes must
    not write into one. 0: blocks that do not lie at multiples of it."""
    grows: bool = False
    """A write may make it longer, up to the next whole sector: qemu-img counts the last sector as whole."""
    growing: bool = False
    """A write may make it as long as it likes."""
    ordered: bool = False
    """Requests are sent over one connection, in the order in which they are made."""
    creatable: bool = True
    """False: nothing is made under such a URL; what is there is written into (LUNs, devices, null:)."""

    async def release(self) -> bool:
        """Give back, until it is needed again, what a server may have little of. False: that would be for good."""
        return True

    @property
    def vague(self) -> bool:
        """Whether `continues` may not know."""
        return False

    @property
    def origin(self) -> Transport:
        """The connection itself, which is another one whenever it was made again."""
        return self

    def continues(self, before: Transport) -> bool | None:
        """Whether an earlier connection of the same name led to this store. None: only what is in it tells."""
        return self.identity == before.identity

    @property
    def whole(self) -> Transport:
        """All of the store, where this is a part of it."""
        return self

    @property
    def guest_size(self) -> int:
        """Bytes of the guest disk that lies in it as it is: whole sectors."""
        return align_up(self.size, SECTOR)

    @property
    def writable(self) -> int:
        """Up to which byte it may be written."""
        if self.growing:
            return _LARGEST
        return align_up(self.size, SECTOR) if self.grows else self.size

    @abc.abstractmethod
    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from byte `offset`."""

    @abc.abstractmethod
    async def write(self, offset: int, buffer: Buffer) -> None:
        """Store `buffer` at byte `offset`."""

    async def write_parts(self, offset: int, parts: list[Buffer]) -> None:
        """Store what is in several buffers one after the other, from byte `offset` on."""
        await self.write(offset, memoryview(b"".join(parts)))

    async def zero(self, offset: int, length: int) -> bool:
        """Make a range read as zeros by a means cheaper than writing them; False: there is none."""
        self._check("writing", offset, length)
        return False

    @property
    def zeroing(self) -> str:
        """By what means `zero()` makes zeros, as far as is known: for `-v`."""
        return "zeros are written"

    async def copy_from(self, source: Transport, source_offset: int, offset: int, length: int) -> bool:
        """Copy from another store to byte `offset` of this one; False: it cannot."""
        self._check("writing", offset, length)
        return False

    async def fingerprint(self) -> Fingerprint:
        """As it is now. Nothing where nothing can be told: then it counts as the same for ever."""
        return Fingerprint({}, {})

    async def known_by(self) -> Facts:
        """What it is, whatever its name, as it is now."""
        return Facts(self.identity, size=self.size)

    async def disk_size(self) -> int | None:
        """Bytes that the store takes up where it lies; None: nobody tells."""
        return None

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """Extents from `offset` on, in order, without gaps, covering at least one byte and at most `length`."""
        self._check("reading block status", offset, length)
        return [Extent(offset, length)] if length else []

    def claim(self, sharing: Sharing) -> bool:
        """Take QEMU's locks for reading it, and hold them instead of those of before; False: there are none here. InUse
        when another program's are in the way.
        """
        return False

    async def retried(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` on this store: from its start again when the connection was lost, where it can be made again."""
        await work()

    @abc.abstractmethod
    async def flush(self) -> None:
        """Make durable what was written through this connection."""

    async def discard(self) -> bool:
        """Remove the file that this connection made, as long as its name still leads to it; whether it is gone."""
        return False

    @abc.abstractmethod
    async def close(self) -> None:
        """Give the connection back."""

    def _check(self, operation: str, offset: int | None, length: int) -> None:
        """Raise unless the request may go out: the transport knows whether it is still open."""
        self.check_bounds(operation, offset or 0, length)

    def check_bounds(self, operation: str, offset: int, length: int) -> None:
        """Fatal unless the range lies inside the store."""
        end = self.writable if self.growing or operation == "writing" else self.size
        if offset < 0 or offset + length > end:
            fix = ": it is too small, mpconv measure tells how large it must be" if operation == "writing" else ""
            raise self.error(Fatal, operation, offset, f"beyond the end: it has {self.size} bytes{fix}")

    def error(self, kind: type[MpconvError], operation: str, offset: int | None, why: str) -> MpconvError:
        """An error of this store."""
        return kind(why, operation=operation, image=self.name, offset=offset)


LOCAL_MARKS = frozenset(("its device", "its number"))
"""Those that are others on another host."""


def unlike(then: dict[str, str], now: dict[str, str]) -> str | None:
    """What tells that it is not the same store: the first mark that both have and that differs."""
    for what, was in then.items():
        if now.get(what, was) != was:
            return f"{what} is {now[what]}, and was {was}"
    return None


CLOSED = "the connection is closed"
REMOVED = ", so it was removed"


def moment(seconds: int, nanoseconds: int) -> str:
    """A point in time, UTC."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d} UTC"


def cannot_open(name: str, why: str, kind: type[Fatal] = Fatal) -> Fatal:
    """qemu-img's words for a store that cannot be opened, by its name or URL."""
    name = redacted(name)
    error = kind(f"Could not open '{name}': {why}", image=name)
    error.reason = why
    return error


def cannot_create(name: str, why: str, path: str | None = None, kind: type[Fatal] = Fatal) -> Fatal:
    """qemu-img's words for a store that cannot be made. `path`: as the file system knows it."""
    return kind(f"{name}: error while converting raw: Could not create '{name if path is None else path}': {why}")
