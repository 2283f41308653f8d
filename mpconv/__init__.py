"""mpconv: copies disk images between NFS, iSCSI and local storage with many processes.

`await mpconv.convert(source, target)`, and `mpconv.blocking.convert` where there is no event loop: docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpconv._version import __version__ as __version__

if TYPE_CHECKING:
    from mpconv import blocking
    from mpconv.api.copying import Copied, Lost, Resumed, checksum, compare, convert, deploy, resume
    from mpconv.api.fanout import fan_out, read_plan, resume_fan_out
    from mpconv.formats.qcow2.check.accounts import Report as CheckReport
    from mpconv.formats.qcow2.options import Qcow2Options
    from mpconv.inspection.block_map import Entry as MapEntry
    from mpconv.inspection.doctor.findings import Examination
    from mpconv.inspection.info import Info, Qcow2Info
    from mpconv.inspection.measure import Measure
    from mpconv.inspection.queries import backing_chain, check, examine, info, map, measure
    from mpconv.jobs.checksum import Checksum
    from mpconv.jobs.checksum import Options as ChecksumOptions
    from mpconv.jobs.compare import Options as CompareOptions
    from mpconv.jobs.compare import Verdict
    from mpconv.jobs.copy.deploy import Deployment
    from mpconv.jobs.copy.targets import Outcome
    from mpconv.jobs.fanout.spec import Fanout
    from mpconv.jobs.fanout.spec import Limits as FanoutLimits
    from mpconv.jobs.fanout.spec import Outcome as FanoutOutcome
    from mpconv.jobs.fanout.spec import Result as FanoutResult
    from mpconv.jobs.fanout.spec import Spec as FanoutJob
    from mpconv.model.errors import MpconvError
    from mpconv.model.place import Place, Trust
    from mpconv.options.cache import CACHE_MODES
    from mpconv.options.copy import Options
    from mpconv.options.effort import Effort
    from mpconv.ui.terminal.progress import Progress

__all__ = [
    "CACHE_MODES",
    "CheckReport",
    "Checksum",
    "ChecksumOptions",
    "CompareOptions",
    "Copied",
    "Deployment",
    "Effort",
    "Examination",
    "Fanout",
    "FanoutJob",
    "FanoutLimits",
    "FanoutOutcome",
    "FanoutResult",
    "Info",
    "Lost",
    "MapEntry",
    "Measure",
    "MpconvError",
    "Options",
    "Outcome",
    "Place",
    "Progress",
    "Qcow2Info",
    "Qcow2Options",
    "Resumed",
    "Trust",
    "Verdict",
    "backing_chain",
    "blocking",
    "check",
    "checksum",
    "compare",
    "convert",
    "deploy",
    "examine",
    "fan_out",
    "info",
    "map",
    "measure",
    "read_plan",
    "resume",
    "resume_fan_out",
]

_FOUND_IN = {
    "CACHE_MODES": "mpconv.options.cache",
    "CheckReport": "mpconv.formats.qcow2.check.accounts:Report",
    "Checksum": "mpconv.jobs.checksum",
    "ChecksumOptions": "mpconv.jobs.checksum:Options",
    "CompareOptions": "mpconv.jobs.compare:Options",
    "Deployment": "mpconv.jobs.copy.deploy",
    "Effort": "mpconv.options.effort",
    "Examination": "mpconv.inspection.doctor.findings",
    "Fanout": "mpconv.jobs.fanout.spec",
    "FanoutJob": "mpconv.jobs.fanout.spec:Spec",
    "FanoutLimits": "mpconv.jobs.fanout.spec:Limits",
    "FanoutOutcome": "mpconv.jobs.fanout.spec:Outcome",
    "FanoutResult": "mpconv.jobs.fanout.spec:Result",
    "Info": "mpconv.inspection.info",
    "MapEntry": "mpconv.inspection.block_map:Entry",
    "Measure": "mpconv.inspection.measure",
    "MpconvError": "mpconv.model.errors",
    "Options": "mpconv.options.copy",
    "Outcome": "mpconv.jobs.copy.targets",
    "Place": "mpconv.model.place",
    "Progress": "mpconv.ui.terminal.progress",
    "Qcow2Info": "mpconv.inspection.info",
    "Qcow2Options": "mpconv.formats.qcow2.options",
    "Trust": "mpconv.model.place",
    "Verdict": "mpconv.jobs.compare",
    **dict.fromkeys(("fan_out", "read_plan", "resume_fan_out"), "mpconv.api.fanout"),
    **dict.fromkeys(("backing_chain", "check", "examine", "info", "map", "measure"), "mpconv.inspection.queries"),
}
"""Where each is, and as what if not by its own name; the rest is in api/copying.py."""


def __getattr__(name: str) -> object:
    """What a program uses is imported when it does: the commands need only a part."""
    if name not in __all__:
        raise AttributeError(f"module 'mpconv' has no attribute '{name}'")
    from importlib import import_module  # noqa: PLC0415

    if name == "blocking":
        return import_module("mpconv.blocking")
    module, _, its_name = _FOUND_IN.get(name, "mpconv.api.copying").partition(":")
    return getattr(import_module(module), its_name or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
