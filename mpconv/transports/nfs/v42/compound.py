"""NFSv4.2 compounds (RFC 8881, RFC 7862), as far as finding and making a file's holes needs them. Pure.

A request is a list of encoded operations. A reply is read operation by operation with `Reply.take`, which raises
`Refused` for any status but OK.
"""

from __future__ import annotations

import enum
import struct

from msgspec import Struct

from mpconv.transports.nfs.v42.xdr import Malformed, Reader, long, opaque, words

_RPC_VERSION, _PROGRAM, _VERSION, _COMPOUND = 2, 100003, 4, 1
_CALL, _REPLY = 0, 1
_AUTH_NONE, _AUTH_SYS = 0, 1
_MINOR = 2
_MACHINE = b"mpconv"
_CALLBACKS = 0x40000000
"""The program number of callbacks, of which there are none: no back channel is bound."""
LARGEST_REPLY = 4096
_LARGEST_REQUEST = 4096
_OPERATIONS = 32

NO_ENTRY, NOT_A_DIRECTORY, ACCESS, NO_MORE = 2, 20, 13, 6
_WORDS = {
    1: "not permitted", NO_ENTRY: "no such file", 5: "input/output error", NO_MORE: "no such address",
    ACCESS: "permission denied", NOT_A_DIRECTORY: "not a directory", 22: "invalid argument", 70: "stale file handle",
    10004: "not supported", 10006: "server fault", 10008: "delayed", 10011: "expired", 10013: "in grace",
    10021: "minor version mismatch", 10022: "stale client", 10029: "symbolic link", 10044: "illegal operation",
    10052: "bad session", 10016: "wrong security", 10015: "share denied", 10038: "not open for this", 30: "read-only",
}  # fmt: skip


class Op(enum.IntEnum):
    """Operations, by their numbers."""

    CLOSE = 4
    GETATTR = 9
    GETFH = 10
    LOOKUP = 15
    OPEN = 18
    PUTFH = 22
    PUTROOTFH = 24
    READ = 25
    EXCHANGE_ID = 42
    CREATE_SESSION = 43
    DESTROY_SESSION = 44
    SEQUENCE = 53
    DESTROY_CLIENTID = 57
    RECLAIM_COMPLETE = 58
    DEALLOCATE = 62
    SEEK = 69


class What(enum.IntEnum):
    """What SEEK looks for."""

    DATA = 0
    HOLE = 1


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, operation: Op | None, status: int) -> None:
        where = operation.name if operation is not None else "COMPOUND"
        super().__init__(f"{where}: {_WORDS.get(status, f'error {status}')}")
        self.operation = operation
        self.status = status


class Attributes(Struct, frozen=True):
    """Of a file: what tells it from others, and whether it has changed."""

    regular: bool
    change: int
    size: int
    fileid: int
    mtime: int
    mtime_nsec: int


# -- requests


def credential(uid: int, gid: int) -> bytes:
    """AUTH_SYS with no further groups, as libnfs does it; and the empty verifier."""
    body = words(0) + opaque(_MACHINE) + words(uid, gid, 0)
    return words(_AUTH_SYS) + opaque(body) + words(_AUTH_NONE, 0)


def call(xid: int, who: bytes, operations: list[bytes], *, minor: int = _MINOR) -> bytes:
    """A whole record: mark, RPC header, compound. `minor`: of which version it is, 4.0 to 4.2."""
    return record(
        words(xid, _CALL, _RPC_VERSION, _PROGRAM, _VERSION, _COMPOUND)
        + who
        + words(0, minor, len(operations))
        + b"".join(operations)
    )


def record(body: bytes) -> bytes:
    """One last fragment."""
    return words(0x80000000 | len(body)) + body


def exchange_id(verifier: bytes, owner: bytes) -> bytes:
    """No state protection, no implementation's name."""
    return words(Op.EXCHANGE_ID) + verifier + opaque(owner) + words(0, 0, 0)


def create_session(client: int, sequence: int) -> bytes:
    """One slot; callbacks are never served."""
    fore = words(0, _LARGEST_REQUEST, LARGEST_REPLY, LARGEST_REPLY, _OPERATIONS, 1, 0)
    back = words(0, _LARGEST_REQUEST, LARGEST_REPLY, 0, 2, 1, 0)
    return words(Op.CREATE_SESSION) + long(client) + words(sequence, 0) + fore + back + words(_CALLBACKS, 1, _AUTH_NONE)


def sequence(session: bytes, number: int) -> bytes:
    """On the one slot, not to be remembered."""
    return words(Op.SEQUENCE) + session + words(number, 0, 0, 0)


def reclaim_complete() -> bytes:
    """There is nothing to reclaim."""
    return words(Op.RECLAIM_COMPLETE, 0)


def put_root() -> bytes:
    """The top of the server's tree."""
    return words(Op.PUTROOTFH)


def put_handle(handle: bytes) -> bytes:
    """A file that was looked up before."""
    return words(Op.PUTFH) + opaque(handle)


def lookup(name: bytes) -> bytes:
    """One component of a path."""
    return words(Op.LOOKUP) + opaque(name)


def get_handle() -> bytes:
    """The handle of the current file."""
    return words(Op.GETFH)


_TYPE, _CHANGE, _SIZE, _FILEID, _MTIME = 1, 3, 4, 20, 53
_WANTED = sum(1 << number for number in (_TYPE, _CHANGE, _SIZE, _FILEID, _MTIME))


def get_attributes() -> bytes:
    """All of `Attributes`."""
    return words(Op.GETATTR, 2, _WANTED & 0xFFFFFFFF, _WANTED >> 32)


def open_file(client: int, owner: bytes, *, writing: bool) -> bytes:
    """The current file (CLAIM_FH), for reading at least; deny none, no delegation wanted."""
    access, no_delegation, deny_none, no_create, claim_fh = 3 if writing else 1, 0x400, 0, 0, 4
    return (
        words(Op.OPEN, 0, access | no_delegation, deny_none) + long(client) + opaque(owner) + words(no_create, claim_fh)
    )


def seek(state: bytes, offset: int, what: What) -> bytes:
    """The next data or the next hole, at or after `offset`."""
    return words(Op.SEEK) + state + long(offset) + words(what)


def read(state: bytes, offset: int, count: int) -> bytes:
    """A few bytes: an answer has 4 KiB in all."""
    return words(Op.READ) + state + long(offset) + words(count)


def deallocate(state: bytes, offset: int, length: int) -> bytes:
    """Make a range a hole; the file's size stays (RFC 7862, 15.4)."""
    return words(Op.DEALLOCATE) + state + long(offset) + long(length)


def close(state: bytes) -> bytes:
    """Give back the open."""
    return words(Op.CLOSE, 0) + state


def destroy_session(session: bytes) -> bytes:
    """Stands alone in its compound."""
    return words(Op.DESTROY_SESSION) + session


def destroy_client(client: int) -> bytes:
    """Stands alone in its compound."""
    return words(Op.DESTROY_CLIENTID) + long(client)


# -- replies


class Reply:
    """The answer to one compound."""

    def __init__(self, data: bytes, xid: int) -> None:
        self._reader = reader = Reader(data)
        if reader.word() != xid or reader.word() != _REPLY:
            raise Malformed("an answer to no question")
        if reader.word() != 0:
            raise Malformed("the server denied the call")
        reader.word()
        reader.opaque(400)
        if reader.word() != 0:
            raise Malformed("the server does not take the call")
        self._status = reader.word()
        reader.opaque(1024)
        self._left = reader.word()

    def take(self, operation: Op) -> Reader:
        """Where this operation's result begins."""
        if self._left < 1:
            if self._status != 0:
                raise Refused(None, self._status)
            raise Malformed(f"no answer to {operation.name}")
        self._left -= 1
        found = self._reader.word()
        status = self._reader.word()
        if status != 0:
            raise Refused(operation, status)
        if found != operation:
            raise Malformed(f"operation {found} answered in place of {operation.name}")
        return self._reader

    def skip(self, *operations: Op) -> None:
        """Operations that answer nothing but that they were done."""
        for operation in operations:
            self.take(operation)

    def took_sequence(self, session: bytes, number: int) -> None:
        """The SEQUENCE that begins a compound, with what it must repeat."""
        reader = self.take(Op.SEQUENCE)
        if reader.fixed(16) != session or reader.word() != number or reader.word() != 0:
            raise Malformed("an answer on another slot")
        reader.fixed(12)

    def exchanged(self) -> tuple[int, int]:
        """Client number, and the sequence number for CREATE_SESSION."""
        reader = self.take(Op.EXCHANGE_ID)
        return reader.long(), reader.word()

    def session(self) -> bytes:
        """The name of a new session."""
        return self.take(Op.CREATE_SESSION).fixed(16)

    def handle(self) -> bytes:
        """Of GETFH."""
        return self.take(Op.GETFH).opaque(128)

    def state(self) -> bytes:
        """Of OPEN; nothing may be read after it."""
        return self.take(Op.OPEN).fixed(16)

    def attributes(self) -> Attributes:
        """All that were asked for; a server that leaves one out is of no use."""
        reader = self.take(Op.GETATTR)
        given = reader.bitmap()
        if given != _WANTED:
            raise Malformed("other attributes than those asked for")
        reader.word()
        return Attributes(
            reader.word() == 1,
            reader.long(),
            reader.long(),
            reader.long(),
            *struct.unpack(">qI", reader.fixed(12)),
        )

    def data(self) -> bytes:
        """Of READ."""
        reader = self.take(Op.READ)
        reader.word()
        return reader.opaque(LARGEST_REPLY)

    def found(self) -> tuple[bool, int]:
        """Of SEEK: whether the end of the file came first, and the offset."""
        reader = self.take(Op.SEEK)
        return reader.word() != 0, reader.long()
