"""What the functions of the API have in common."""

from __future__ import annotations

from collections.abc import Callable

from mpconv.job import Place

Name = str | Place
"""A path, an nfs:// or iscsi:// URL, or `null:`."""
OnWarning = Callable[[str], None]


def place_of(name: Name, fmt: str | None) -> Place:
    """Where the image lies. `fmt`: None: its first bytes tell. A Place says that itself."""
    return name if isinstance(name, Place) else Place(url=name, format=fmt)
