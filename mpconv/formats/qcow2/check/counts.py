"""A number for each host cluster of a file, and what a check finds. Pure.

Millions of clusters are counted with operations on whole byte strings: digit i of every number, to the base of 256,
lies in memory of its own. Pages that nothing was written to take up none: so a sparse file is no burden.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

from mpconv.formats.qcow2 import refcounts
from mpconv.model.errors import ImageError

_MOST_TOLD = 10_000
_MOST_ERRORS = 1 << 20
_MOST_LEAKS = 1 << 24
"""A disk of 1 TiB whose tables are lost leaks as many clusters of 64 KiB."""
_FULL = 255


class Findings:
    """What is wrong with an image, in numbers, and line by line to `tell`. Some thousand lines are told, not millions;
    an image of garbage, with millions of errors, is given up: ImageError.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.corruptions = 0
        self.leaks = 0
        self.check_errors = 0
        self._tell = tell
        self._untold = _MOST_TOLD

    def corrupt(self, line: str, times: int = 1) -> None:
        """Data may be lost, now or by a later write."""
        self.corruptions += times
        self._found(line, times)

    def leaked(self, line: str) -> None:
        """A cluster is lost to use."""
        self.leaks += 1
        self._found(line, 1)

    def unknown(self, line: str) -> None:
        """Something could not be checked."""
        self.check_errors += 1
        self._found(line, 1)

    def _found(self, line: str, times: int) -> None:
        for _ in range(min(times, self._untold)):
            self._tell(line)
        if self._untold:
            self._untold = max(0, self._untold - times)
            if not self._untold:
                self._tell(f"More than {_MOST_TOLD} errors: no more of them are listed")
        if self.corruptions + self.check_errors > _MOST_ERRORS or self.leaks > _MOST_LEAKS:
            raise ImageError(
                f"Check failed: more than {_MOST_ERRORS} errors or {_MOST_LEAKS} leaks: the check was given up"
            )


@cache
def _plus(amount: int) -> bytes:
    return bytes((value + amount) & _FULL for value in range(256))


@cache
def _up_to(value: int) -> bytes:
    return bytes(range(value + 1))


def zeros(length: int) -> mmap.mmap:
    """So many bytes. A bytearray is written to from end to end when it is made; this is not."""
    made = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        made.madvise(mmap.MADV_NOHUGEPAGE)
    return made


class Counts:
    """A number for each of `clusters` clusters, 0 at first, never over `most`."""

    def __init__(self, clusters: int, most: int) -> None:
        self.clusters = clusters
        self.most = most
        self._limit = min(_FULL, most)
        self._digits = [zeros(clusters)]

    def __getitem__(self, cluster: int) -> int:
        if cluster >= self.clusters:
            return 0
        if len(self._digits) == 1:
            return self._digits[0][cluster]
        return sum(digit[cluster] << 8 * place for place, digit in enumerate(self._digits))

    def _set(self, cluster: int, value: int) -> None:
        place = 0
        while value or place < len(self._digits):
            if place == len(self._digits):
                self._digits.append(zeros(self.clusters))
            self._digits[place][cluster] = value & _FULL
            value >>= 8
            place += 1

    def add(self, first: int, length: int, times: int) -> list[tuple[int, int]]:
        """Add `times` to each of `length` clusters. Of those that would go over `most`: (cluster, by how much)."""
        low = self._digits[0]
        limit = self._limit
        if length == 1:
            value = low[first] + times
            if value <= limit:
                low[first] = value
                return []
        elif times <= limit:
            part = low[first : first + length]
            if not part.translate(None, _up_to(limit - times)):
                low[first : first + length] = part.translate(_plus(times))
                return []
        over = []
        for cluster in range(first, first + length):
            value = self[cluster] + times
            if value > self.most:
                over.append((cluster, value - self.most))
            self._set(cluster, min(value, self.most))
        return over

    def add_new(self, clusters: Sequence[int]) -> int:
        """Each of them that was 0 becomes 1, up to the first that was not; how many those are."""
        if len(self._digits) > 1:
            return 0
        low = self._digits[0]
        for number, cluster in enumerate(clusters):
            if low[cluster]:
                return number
            low[cluster] = 1
        return len(clusters)

    def load(self, first: int, block: bytes, order: int) -> None:
        """The refcounts of a refcount block, of 2^`order` bits each, as those of the clusters from `first` on."""
        length = max(0, min(self.clusters - first, (len(block) << 3) >> order))
        if order < 3:
            self._load(0, first, refcounts.small(block, order)[:length])
            return
        width = 1 << (order - 3)
        for place in range(width):
            self._load(place, first, block[width - 1 - place :: width][:length])

    def _load(self, place: int, first: int, values: bytes) -> None:
        if values.count(0) == len(values):
            return
        while place >= len(self._digits):
            self._digits.append(zeros(self.clusters))
        self._digits[place][first : first + len(values)] = values

    def ones(self, first: int, length: int) -> int:
        """How many of them are 1."""
        if len(self._digits) == 1:
            return self._digits[0][first : first + length].count(1)
        return sum(self[cluster] == 1 for cluster in range(first, first + length))

    def parts(self, first: int, end: int) -> list[bytes]:
        """Their digits, the lowest first, without the highest ones that are 0 everywhere."""
        parts = [digit[first:end] for digit in self._digits]
        while len(parts) > 1 and parts[-1].count(0) == len(parts[-1]):
            parts.pop()
        return [part.ljust(end - first, b"\0") for part in parts]


def last_used(parts: list[bytes]) -> int:
    """The place after the last number that is not 0."""
    return max(len(part.rstrip(b"\0")) for part in parts)


LARGEST_COUNT = (1 << 31) - 1
"""Clusters that QEMU checks, at most."""
