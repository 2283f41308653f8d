"""Who hears what becomes of a job."""

from __future__ import annotations

from collections.abc import Callable

from mpconv.errors import Deserted


class Observer:
    """This one listens to nothing."""

    def progress(self, done: int, total: int, zeros: int) -> None:
        """So many bytes are complete, `zeros` of them zero."""

    def phase(self, name: str) -> None:
        """What it is at now: "copy", "read", "flush", "verify"."""

    def lost(self, ranges: list[tuple[int, int]], why: str) -> None:
        """These ranges (start, length) of the source could not be read and became zeros."""

    def digest(self, text: str, image: str) -> None:
        """The digest of what was copied into an image, which is named without credentials."""

    def verified(self, checked: int, size: int) -> None:
        """So many bytes of `size` were read back and are the source's."""

    def dropped(self, number: int, image: str, why: str) -> None:
        """Of several targets this one, counted from 0 and named without credentials, failed; the others go on."""

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        """Workers of other hosts may connect there from now on. `give_up`: for who knows that none will; it has the job
        end with that error unless somebody works.
        """

    def said(self, text: str) -> None:
        """How something is done, told once."""

    def warn(self, text: str) -> None:
        """People should know it, though the job goes on."""
