"""XDR (RFC 4506): 4-byte big-endian words. Pure."""

from __future__ import annotations

import struct

_WORD = struct.Struct(">I")
_LONG = struct.Struct(">Q")


class Malformed(Exception):
    """The bytes are not what the protocol says must be there."""


def words(*values: int) -> bytes:
    """Unsigned 32-bit integers."""
    return struct.pack(f">{len(values)}I", *values)


def long(value: int) -> bytes:
    """An unsigned 64-bit integer."""
    return _LONG.pack(value)


def opaque(data: bytes) -> bytes:
    """Bytes of variable length: count, bytes, padding."""
    return _WORD.pack(len(data)) + data + bytes(-len(data) % 4)


class Reader:
    """Takes values off the front of `data`; what is not there is `Malformed`."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

    def word(self) -> int:
        """An unsigned 32-bit integer."""
        return int(_WORD.unpack(self.fixed(4))[0])

    def long(self) -> int:
        """An unsigned 64-bit integer."""
        return int(_LONG.unpack(self.fixed(8))[0])

    def fixed(self, count: int) -> bytes:
        """Exactly so many bytes, with their padding taken too."""
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise Malformed("the answer is too short")
        self._at += count + -count % 4
        return found

    def opaque(self, most: int) -> bytes:
        """Bytes of variable length, not more than `most`."""
        count = self.word()
        if count > most:
            raise Malformed(f"{count} bytes where at most {most} may be")
        return self.fixed(count)

    def bitmap(self) -> int:
        """A bitmap4, as one number: bit n stands for attribute n."""
        count = self.word()
        if count > 8:
            raise Malformed(f"a bitmap of {count} words")
        return sum(self.word() << 32 * number for number in range(count))
