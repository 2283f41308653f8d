"""What the bench does with a command: runs it, measures it with all its descendants, tabulates it beside others."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Figures:
    """What one setting showed: one entry a round; seconds, CPU seconds, KiB of the largest process.

    `left_kib`: KiB allocated in the target afterwards, `size_bytes`: the result's size, in the rows that count them.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_kib: list[int] = field(default_factory=list)
    left_kib: list[int] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)


Found = dict[str, Figures]
"""By setting."""

Limits = dict[str, float]
"""Seconds that the link itself needs, by what is sent."""


def run(
    command: list[str], *, prepare: Callable[[], None] | None = None, expected: int = 0
) -> tuple[float, float, int]:
    """Seconds, CPU seconds of it and all its descendants, KiB of the largest of them. `prepare` runs in its process."""
    figures, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        with os.fdopen(theirs, "w") as report:
            if prepare is not None:
                prepare()
            json.dump(_measured(command), report)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(figures) as report:
        code, words, seconds, cpu, peak = json.load(report)
    os.waitpid(pid, 0)
    if code != expected:
        sys.exit(f"bench: {' '.join(command)}\n  ended with {code}, not {expected}: {words.strip()}")
    return seconds, cpu, peak


def _measured(command: list[str]) -> tuple[int, str, float, float, int]:
    """In a process of its own, which every orphan of the command comes to."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    started = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    cpu, peak, code, seconds = 0.0, 0, -1, 0.0
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        if pid == child.pid:
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - started
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss)
    assert child.stderr is not None
    return code, child.stderr.read().decode(errors="replace"), seconds, cpu, peak


def table(title: str, found: Found, limits: Limits | None = None) -> list[str]:
    """Lines for people. With `limits`: each setting's time divided by them. Where sizes were counted: the median, and
    how many times that of the best of qemu-img it is.
    """
    best, limits = fastest(found, "qemu-img"), limits or {}
    counted = any(figures.left_kib for figures in found.values())
    lines = [f"{title} (best of qemu-img: {best})"]
    lines += [f"  the link itself needs {seconds:.2f} s for {what}" for what, seconds in limits.items()]
    header = f"  {'setting':28} {'seconds':>8} {'min':>6} {'max':>6} {'times':>6} {'CPU s':>6} {'peak MiB':>9}"
    header += "".join(f" {'/ ' + what.split(',')[0]:>11}" for what in limits) + (" left KiB" if counted else "")
    usual = statistics.median(found[best].size_bytes) if found[best].size_bytes else None
    lines.append(header + (f" {'size MiB':>9} {'/ qemu':>7}" if usual else ""))
    for name, figures in found.items():
        median = statistics.median(figures.seconds)
        line = (
            f"  {name:28} {median:8.2f} {min(figures.seconds):6.2f} {max(figures.seconds):6.2f}"
            f" {statistics.median(ratios(found, name, best)):6.2f} {statistics.median(figures.cpu):6.2f}"
            f" {max(figures.peak_kib) / 1024:9.1f}"
        )
        line += "".join(f" {median / seconds:11.3f}" for seconds in limits.values())
        line += f" {max(figures.left_kib):8}" if counted else ""
        if usual:
            size = statistics.median(figures.size_bytes)
            line += f" {size / (1 << 20):9.1f} {size / usual:7.3f}"
        lines.append(line)
    return lines


def fastest(found: Found, program: str) -> str:
    """The setting with the lowest median."""
    names = [name for name in found if name.startswith(program)]
    return min(names or found, key=lambda name: statistics.median(found[name].seconds))


def ratios(found: Found, name: str, best: str) -> list[float]:
    """How many times as fast as `best`, round by round."""
    return [theirs / own for theirs, own in zip(found[best].seconds, found[name].seconds, strict=True)]
