"""Plans of fan-outs, for programs: a job's keys are options of the command `convert`, and are judged as those are."""

from __future__ import annotations

import os

from mpconv.cli.fanout_plan import resolved, text_of
from mpconv.errors import UsageError
from mpconv.fanout.spec import Fanout


def read_plan(plan: str | os.PathLike[str]) -> Fanout:
    """What a plan asks for. `plan`: its text, in TOML, or the Path of a file. UsageError with all that is wrong."""
    path = None if isinstance(plan, str) else os.fspath(plan)
    text = text_of("./-" if path == "-" else path) if path is not None else str(plan)
    found, problems = resolved(text, None, None, jobs=None, workers=None)
    if problems:
        name = f"the plan '{path}'" if path is not None else "the plan"
        hint = "; a file is given as a Path" if path is None and "\n" not in text.strip() else ""
        raise UsageError(f"{name} cannot be carried out: {'; '.join(map(str, problems))}{hint}")
    return found
