"""How much a copy does at a time, and what its workers are to be: what may differ from run to run. Pure."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict, replace

from mpconv.options.copy import Options
from mpconv.protocol.keys import Listening


class Effort(Struct, frozen=True, kw_only=True):
    """What may be chosen anew when a copy goes on; None: as before."""

    requests: int | None = None
    workers: int | None = None
    rate: int | None = None
    retry_for: float | None = None
    listening: Listening | None = None
    allow_same_image: bool | None = None

    def applied(self, options: Options) -> Options:
        """The options that count now."""
        return replace(options, **{name: value for name, value in asdict(self).items() if value is not None})
