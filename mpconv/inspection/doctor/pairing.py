"""A source and a target checked together: what would keep a copy from the one to the other. Pure."""

from __future__ import annotations

from mpconv.inspection.doctor.findings import Examination, size_words
from mpconv.model.units import human
from mpconv.transports.identity import ALLOW, Verdict


def check(source: Examination, target: Examination, verdict: Verdict) -> None:
    """Adds to what was found about the target. `verdict`: whether the two are one, under whatever names."""
    missing = [one for one in target.problems if one.code == "missing"]
    if missing and target.creatable:
        target.problems = [one for one in target.problems if one.code != "missing"]
        target.fact("target", "new", "it is not there: convert makes it")
    elif missing:
        target.problems = [one for one in target.problems if one.code != "missing"]
        what = "the target is not there, and no file may be made in its directory"
        target.problem("not-creatable", what, "have the directory made writable for you, or name another")
    if target.busy:
        what = f"the device is in use: {target.busy}. What is written to it would be mixed with what others write"
        target.problem("in-use", what, "unmount it, or name another device")
    if target.opened and target.writable is False:
        target.problem("not-writable", f"the target cannot be written: {target.why_not_writable}", _write_fix(target))
    if verdict is not Verdict.DIFFERENT:
        probably = verdict is Verdict.PROBABLE
        fix = f"name another target, or give {ALLOW} to convert if you know that they are two"
        what = f"source and target are {'probably ' if probably else ''}the same image"
        target.problem("same", what, fix if probably else "name another target")
        return
    _room(source, target)


def _room(source: Examination, target: Examination) -> None:
    size = source.guest_size
    if size is None:
        return
    if target.fixed and target.size is not None and target.size < size:
        what = f"the target is too small: the source has {size_words(size)}, the target {size_words(target.size)}"
        target.problem("too-small", what, f"make it at least {size} bytes ({size - target.size} more)")
    if target.fixed or target.free is None:
        return
    room = target.free + (target.used or 0)
    if source.data_size is not None and source.data_size > room:
        what = f"no room: {human(source.data_size)} of data in the source, {human(room)} where the target lies"
        target.problem("no-room", what, "make room there, or compress: -c -O qcow2")
    elif source.data_size is None and size > room:
        what = f"the source has {human(size)}, and {human(room)} are there: it fits only if enough of it is zeros"
        target.advise("little-room", what, "make room there, or compress: -c -O qcow2")


def _write_fix(target: Examination) -> str:
    kinds = {
        "iscsi": "take the write protection off on the target (tgt: --params readonly=0)",
        "nfs": "export it for writing (rw), or ask as its owner, with ?uid=N&gid=N",
    }
    return kinds.get(target.url.partition(":")[0].lower(), "run as its owner or as root, or give the right (chmod)")
