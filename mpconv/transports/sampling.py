"""Where to look whether holes are holes. Pure, but for chance."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mpconv.model.extent import Extent
from mpconv.model.units import KiB

_SAMPLE = 4 * KiB


def places(zeros: Sequence[Extent], count: int) -> list[Extent]:
    """Half of them by the holes' size, half by their number; at their edges and inside. Ascending."""
    by_size = random.choices(zeros, [hole.length for hole in zeros], k=count - count // 2)
    by_number = random.choices(zeros, k=count // 2)
    found = set()
    for hole in (*by_size, *by_number):
        length = min(_SAMPLE, hole.length)
        last = hole.end - length
        found.add(Extent(random.choice([hole.start, last, random.randint(hole.start, last)]), length))
    return sorted(found, key=lambda place: place.start)
