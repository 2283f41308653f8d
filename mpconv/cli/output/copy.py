"""What a running job tells: progress, what was lost, warnings. Shared by the commands that run one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from mpconv.cli import leftovers
from mpconv.cli.options.command import show
from mpconv.coordination.signals import interruptible, last_of_the_process
from mpconv.jobs.collector import Collector
from mpconv.model.errors import Deserted, one_line
from mpconv.model.units import duration, human
from mpconv.protocol import descriptors
from mpconv.ui.terminal.display import make_display
from mpconv.ui.terminal.progress import Display

if TYPE_CHECKING:
    from mpconv.ui.monitor.monitor import Monitor
    from mpconv.workers.launch.dask_cluster import Placement

_Result = TypeVar("_Result")
_MINUTE = 60.0
_DESCRIPTORS = 20
"""Without these no job gets far, and it had better not begin."""


class Report(Collector):
    """Passes on what the job tells to the display and, for people, to stderr; and to who has its workers placed."""

    def __init__(
        self,
        display: Display,
        *,
        quiet: bool,
        verbose: bool,
        placement: Placement | None = None,
        did: str = "copied",
    ) -> None:
        super().__init__()
        self._did = did
        self._began = time.monotonic()
        self._copied: tuple[int, int] | None = None
        self._copied_at: float | None = None
        self._differs = False
        self._display = display
        self._quiet = quiet
        self._verbose = verbose
        self._placement = placement
        if placement is not None:
            placement.warn, placement.said = self.warn, self.said

    def __enter__(self) -> Report:
        self._display.update(0, 0, 0, "open")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            text = self._summary()
            shown = bool(text) and self._display.summary(text)
            self._display.update(self.total, self.total, self.zeros, "done")
        else:
            self._display.update(self.done, self.total, self.zeros, "failed")
        self._display.finish()
        self._tell_lost()
        if kind is None:
            if text and not shown and self._verbose and not self._quiet:
                self.said(text)
                shown = True
            self._tell_results(summed=shown)

    def _summary(self) -> str:
        """What it came to, for people; "" where there was nothing to do."""
        copies = self._did == "copied"
        size, zeros = self._copied or (self.done if self._differs else self.total, self.zeros)
        if not size:
            return ""
        before, zeros_before = self.before if copies and self.before is not None else (0, 0)
        zeros = zeros - zeros_before if copies else self.passed
        now = time.monotonic()
        seconds, busy = now - self._began, (self._copied_at or now) - self._began
        moved = max(0, size - before - zeros)
        amounts = [f"{human(moved)} {'written' if copies else 'read'}"]
        amounts += [f"{human(zeros)} zeros"] if zeros else []
        amounts += [f"{human(before)} done before"] if before else []
        amounts += [f"{human(moved / busy)}/s on average"] if moved and busy > 0 else []
        amounts += [f"{_share(*self.checked)} verified"] if self.checked is not None else []
        of_all = f" of {human(self.total)}" if self._differs else ""
        took = f"{seconds:.1f} s" if seconds < _MINUTE else duration(seconds)
        return f"{self._did} {human(size)}{of_all} in {took}: {', '.join(amounts)}"

    def _tell_results(self, *, summed: bool) -> None:
        """The digest was asked for, so -q does not silence it. That everything was verified, exit code 0 says.
        `summed`: a summary has told what was verified.
        """
        if self.checked is not None:
            checked, size = self.checked
            told = self._display.result({"verified": checked, "of": size})
            if not told and not summed and (self._verbose or checked < size) and not self._quiet:
                print(f"mpconv: verified {human(checked)} of {human(size)}", file=sys.stderr)
        if self.found is not None:
            text, image = self.found
            if not self._display.result({"digest": text, "image": image}):
                show([f"{text}  {image}"])

    def _tell_lost(self) -> None:
        ranges = self.lost_ranges()
        self._display.lost(ranges)
        if not ranges or self._quiet:
            return
        total = sum(length for _, length, _ in ranges)
        self.warn(f"{total} bytes could not be read and are zeros in the target:")
        for start, length, why in ranges:
            self.warn(f"lost bytes {start} to {start + length - 1} ({length}): {why}")

    def progress(self, done: int, total: int, zeros: int) -> None:
        super().progress(done, total, zeros)
        self._display.update(done, total, zeros, self.phase_now)

    def workers(self, count: int) -> None:
        self._display.workers = count

    def skips(self, known: int, passed: int) -> None:
        super().skips(known, passed)
        self._display.known, self._display.passed = known, passed

    def retrying(self, count: int, why: str) -> None:
        self._display.retrying(count, why)

    def tick(self) -> None:
        self._display.tick()

    def judged(self, text: str, *, differs: bool) -> None:
        self._differs = differs

    def phase(self, name: str) -> None:
        if name == "verify":
            self._copied, self._copied_at = (self.total, self.zeros), time.monotonic()
        super().phase(name)
        self._display.known, self._display.passed = self.known, self.passed
        self._display.update(self.done, self.total, self.zeros, name)

    def dropped(self, number: int, image: str, why: str) -> None:
        for words in (f"{image}: error while converting raw: ", f"Could not open '{image}': "):
            why = why.removeprefix(words)  # it is named already
        self.warn(f"'{image}' is dropped: {why}")

    def listens(self, endpoint: str, give_up: Callable[[Deserted], None]) -> None:
        self.said(f"workers of other hosts may connect to {endpoint}")
        if self._placement is not None:
            self._placement.begin(endpoint, give_up)

    def said(self, text: str) -> None:
        if self._verbose:
            print(f"mpconv: {one_line(text)}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """A line for people. As in qemu-img, -q does not silence it. A broken stderr does not end the job."""
        with contextlib.suppress(OSError, ValueError):
            print(f"mpconv: warning: {one_line(text)}", file=sys.stderr)


def _share(some: int, of_all: int) -> str:
    return human(some) if some == of_all else f"{human(some)} of {human(of_all)}"


def display_of(options: dict[str, Any]) -> Display:
    """What `-p`, `--progress` and `-q` ask for."""
    shown = (options["progress"] or options["progress_kind"]) and not options["quiet"]
    return make_display((options["progress_kind"] or "text") if shown else "none", sys.stdout, sys.stderr)


def run(
    job: Coroutine[Any, Any, _Result],
    dump: Callable[[], None],
    *,
    verbose: bool,
    images: int = 2,
    placement: Placement | None = None,
    watch: Monitor | None = None,
) -> _Result:
    """Run a job. SIGUSR1, and SIGINFO where it exists, calls `dump`, which tells how far it is; SIGINT, SIGTERM and
    SIGHUP end it with Interrupted. `images`: how many it opens at once; `placement`: places workers meanwhile;
    `watch`: is served meanwhile.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format="mpconv: %(message)s")

    try:
        descriptors.need(_DESCRIPTORS + images)
    except BaseException:
        job.close()
        raise
    leftovers.remove()
    last_of_the_process()

    async def watched() -> _Result:
        for number in filter(None, (signal.SIGUSR1, getattr(signal, "SIGINFO", None))):
            asyncio.get_running_loop().add_signal_handler(number, dump)
        work = job
        for around in (placement, watch):
            if around is not None:
                work = _within(around, work)
        return await interruptible(work)

    return asyncio.run(watched())


async def _within(around: Placement | Monitor, job: Coroutine[Any, Any, _Result]) -> _Result:
    try:
        async with around:
            return await job
    finally:
        job.close()
