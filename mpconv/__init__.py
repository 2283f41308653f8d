"""mpconv: copies disk images between NFS, iSCSI and local storage with many processes.

`await mpconv.convert(source, target)`, and `mpconv.blocking.convert` where there is no event loop: docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpconv import blocking
    from mpconv.api import Copied, Lost, checksum, compare, convert, deploy
    from mpconv.cache import CACHE_MODES
    from mpconv.errors import MpconvError
    from mpconv.formats.qcow2.options import Qcow2Options
    from mpconv.job import Place, Trust
    from mpconv.jobs.checksum import Checksum
    from mpconv.jobs.checksum import Options as ChecksumOptions
    from mpconv.jobs.compare import Options as CompareOptions
    from mpconv.jobs.compare import Verdict
    from mpconv.jobs.deploy import Deployment, Outcome
    from mpconv.options import Options
    from mpconv.ui.progress import Progress

__version__ = "0.1.0"
__all__ = [
    "CACHE_MODES",
    "Checksum",
    "ChecksumOptions",
    "CompareOptions",
    "Copied",
    "Deployment",
    "Lost",
    "MpconvError",
    "Options",
    "Outcome",
    "Place",
    "Progress",
    "Qcow2Options",
    "Trust",
    "Verdict",
    "blocking",
    "checksum",
    "compare",
    "convert",
    "deploy",
]

_FOUND_IN = {
    "CACHE_MODES": "cache",
    "Checksum": "jobs.checksum",
    "ChecksumOptions": "jobs.checksum",
    "CompareOptions": "jobs.compare",
    "Deployment": "jobs.deploy",
    "MpconvError": "errors",
    "Options": "options",
    "Outcome": "jobs.deploy",
    "Place": "job",
    "Progress": "ui.progress",
    "Qcow2Options": "formats.qcow2.options",
    "Trust": "job",
    "Verdict": "jobs.compare",
}
"""The rest is in api.py."""
_NAMED_THERE = {"ChecksumOptions": "Options", "CompareOptions": "Options"}


def __getattr__(name: str) -> object:
    """What a program uses is imported when it does: the commands need only a part."""
    if name not in __all__:
        raise AttributeError(f"module 'mpconv' has no attribute '{name}'")
    from importlib import import_module  # noqa: PLC0415

    if name == "blocking":
        return import_module("mpconv.blocking")
    return getattr(import_module(f"mpconv.{_FOUND_IN.get(name, 'api')}"), _NAMED_THERE.get(name, name))
