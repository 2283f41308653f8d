"""The keys of a coordinator and of its workers, as they stand in a file. Pure.

They are CurveZMQ's, in Z85. Whoever knows the workers' secret may take part in a copy, and whoever knows the
coordinator's may pass for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from mpconv.model.errors import UsageError

_FIRST = "mpconv-keys 1"
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAMES = ("coordinator-public", "coordinator-secret", "worker-public", "worker-secret")
_AT = re.compile(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """`coordinator_secret`: empty in a file that is for workers alone."""

    coordinator_public: str
    coordinator_secret: str = field(default="", repr=False)
    worker_public: str
    worker_secret: str = field(repr=False)

    @property
    def for_workers(self) -> Keys:
        """Without the coordinator's secret."""
        return replace(self, coordinator_secret="")

    @property
    def text(self) -> str:
        """As a file's content."""
        values = (self.coordinator_public, self.coordinator_secret, self.worker_public, self.worker_secret)
        lines = [f"{name} {value}" for name, value in zip(_NAMES, values, strict=True) if value]
        return "\n".join([_FIRST, *lines, ""])


def parse(text: str, name: str) -> Keys:
    """What stands in the file of that name. UsageError when it is no key file; the message shows nothing of it."""
    first, *lines = [line for line in text.splitlines() if line.strip() and not line.startswith("# ")] or [""]
    if first != _FIRST:
        raise UsageError(f"'{name}' is no key file of this version of mpconv: make one with mpconv keygen")
    found: dict[str, str] = {}
    for line in lines:
        what, _, key = line.partition(" ")
        if what not in _NAMES or what in found or _KEY.fullmatch(key) is None:
            raise UsageError(f"the key file '{name}' is damaged: make a new one with mpconv keygen")
        found[what] = key
    if set(_NAMES) - set(found) - {"coordinator-secret"}:
        raise UsageError(f"the key file '{name}' is damaged: make a new one with mpconv keygen")
    return Keys(**{what.replace("-", "_"): key for what, key in found.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a coordinator awaits workers of other hosts. `fence`: the seconds after which one of them that is cut off
    stops by itself. `shared_files`: what is a file here is the same file there.
    """

    endpoint: str
    keys: Keys
    fence: float
    shared_files: bool = False


def check_endpoint(endpoint: str) -> str:
    """The same. UsageError unless it is tcp://HOST:PORT."""
    match = _AT.fullmatch(endpoint)
    if match is None or int(match[2]) > 65535:
        raise UsageError(f"'{endpoint}' is not of the form tcp://HOST:PORT")
    return endpoint
