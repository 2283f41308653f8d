"""What the write verifiers of an NFS server tell (RFC 1813, 3.3.7 and 3.3.21). Pure.

A server holds what it has not written down yet in memory, says so (UNSTABLE), and adds a verifier, which is another one
after each of its starts. Another one between such a write and the COMMIT that covers it means: that write may be gone.
"""

from __future__ import annotations

UNSTABLE, DATA_SYNC, FILE_SYNC = 0, 1, 2


class Verifiers:
    """Those of one connection. What it owes: writes that the server had not written down when it answered, and that no
    COMMIT has covered since.
    """

    __slots__ = ("_durable", "_known", "_owed")

    def __init__(self) -> None:
        self._known: bytes | None = None
        self._owed = 0
        self._durable = 0

    @property
    def known(self) -> bool:
        """Whether a restart would be noticed."""
        return self._known is not None

    def asked(self) -> int:
        """A COMMIT is sent: what it will cover, for `committed`."""
        return self._owed

    def holds(self) -> None:
        """The server has done something else that the next COMMIT makes durable."""
        self._owed += 1

    def wrote(self, verifier: bytes, stability: int) -> bool:
        """The answer to a write; False: what is owed may be lost. Of a write that is written down the verifier says
        nothing: some servers have none for those.
        """
        if stability != UNSTABLE:
            return True
        same = self._is(verifier)
        self._owed += 1
        return same

    def committed(self, verifier: bytes, covered: int) -> bool:
        """The answer to a COMMIT; False: what is owed may be lost, that which it was to cover and all since."""
        if not self._is(verifier):
            return False
        self._durable = max(self._durable, covered)
        return True

    def _is(self, verifier: bytes) -> bool:
        if self._known != verifier and self._owed > self._durable:
            return False
        self._known = verifier
        return True
