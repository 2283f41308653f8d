"""`mpconv status` of a fan-out."""

from __future__ import annotations

from mpconv.cli.output.fanout import columns, size_of
from mpconv.cli.output.status import state_of, when
from mpconv.inspection.texts import json_text
from mpconv.jobs.fanout.journal_dir import is_used, read, resume_with, standing
from mpconv.jobs.fanout.run import outcome_of
from mpconv.jobs.fanout.spec import Spec
from mpconv.journal.records import State, Stored
from mpconv.model.errors import one_line

_NOT_BEGUN = "not begun"


def shown(path: str, *, as_json: bool) -> list[str]:
    """How far each job is, in lines."""
    kept, used = read(path), is_used(path)
    found = [(spec, *standing(path, spec.name)) for spec in kept.plan.jobs]
    finished = sum(one is not None and one.state is State.FINISHED for _, one, _ in found)
    state = "running" if used else "finished" if finished == len(found) else "stopped"
    jobs = [_fact(*one) for one in found]
    if as_json:
        facts = {"state": state, "begun": round(kept.begun, 3), "finished": finished, "jobs": jobs}
        return json_text(facts).split("\n")
    rows = [["job", "state", "durable", "target"]]
    for (spec, one, _), job in zip(found, jobs, strict=True):
        outcome = outcome_of(spec, one)
        rows.append([spec.name, str(job["state"]), size_of(outcome) if one else "-", one_line(outcome.target)])
    lines = [f"state: {state}, {finished} of {len(found)} jobs finished", f"begun: {when(kept.begun)}", *columns(rows)]
    return lines if used or finished == len(found) else [*lines, f"go on with: {resume_with(path)}"]


def _fact(spec: Spec, one: Stored | None, runs: bool) -> dict[str, object]:
    return {
        "job": spec.name,
        "state": _NOT_BEGUN if one is None else state_of(one, runs),
        "target": spec.target.url,
        "durable": one.bytes_done if one is not None else 0,
        "size": one.begun.size if one is not None else None,
    }
