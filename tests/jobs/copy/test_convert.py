"""A whole copy in this process, for what no server can be made to say on demand; and how many workers it gets."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from mpconv.coordination.observer import Observer
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy import journaled
from mpconv.jobs.copy.convert import convert
from mpconv.jobs.copy.manifest import decoded
from mpconv.journal.file import peek
from mpconv.journal.records import State
from mpconv.model.errors import StatusWithdrawn
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place
from mpconv.options.copy import Options
from mpconv.transports.file.store import FileTransport
from mpconv.workers.launch.local import LocalWorkers
from tests.conftest import identical, make_image

MiB = 1 << 20


class Warned(Observer):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("create", [True, False])
def test_holes_that_were_a_lie_are_read_after_all(tmp_path, monkeypatch, create):
    """The source first names a hole where there is data, and is caught at it later."""
    make_image(tmp_path / "a.raw", 8 * MiB)
    (tmp_path / "b.raw").write_bytes(b"\xa5" * (8 * MiB))
    asked = []

    async def block_status(self: FileTransport, offset: int, length: int) -> list[Extent]:
        asked.append(offset)
        if offset == 0:
            return [Extent(0, 4 * MiB, Kind.ZERO)]
        raise StatusWithdrawn("the holes were none", operation="reading block status", image=self.name, offset=offset)

    monkeypatch.setattr(FileTransport, "block_status", block_status)
    observer = Warned()
    workers = LocalWorkers(["mpconv.transports.file.store"])
    options = Options(create=create, workers=2)
    source, target = str(tmp_path / "a.raw"), str(tmp_path / "b.raw")
    asyncio.run(convert([Place(url=source)], Place(url=target), options, JobContext(workers, observer)))
    assert identical(source, target)
    assert asked == [0, 4 * MiB]
    assert (
        len(observer.warnings) == 1
        and "the holes were none" in observer.warnings[0]
        and "reads everything" in observer.warnings[0]
    )


@pytest.mark.parametrize("qcow2", [False, True])
def test_with_a_journal_the_copy_begins_anew_in_the_same_target(tmp_path, monkeypatch, qcow2):
    """What the journal had by then was done by the source's lie: nothing of it counts any more."""
    make_image(tmp_path / "a.raw", 8 * MiB)
    real = FileTransport.block_status
    lies = []

    async def block_status(self: FileTransport, offset: int, length: int) -> list[Extent]:
        if not self.name.endswith("a.raw"):
            return await real(self, offset, length)
        lies.append(offset)
        if offset == 0:
            return [Extent(0, 4 * MiB, Kind.ZERO)]
        raise StatusWithdrawn("the holes were none", operation="reading block status", image=self.name, offset=offset)

    monkeypatch.setattr(FileTransport, "block_status", block_status)
    observer = Warned()
    workers = LocalWorkers(["mpconv.transports.file.store"])
    made = Qcow2Options() if qcow2 else None
    options = Options(workers=2, target_format="qcow2" if qcow2 else "raw", qcow2=made)
    source, target, path = (str(tmp_path / name) for name in ("a.raw", "b.img", "j.db"))
    asyncio.run(journaled.convert([Place(url=source)], Place(url=target), options, JobContext(workers, observer), path))
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2" if qcow2 else "raw", source, target]
    assert subprocess.run(command, check=False).returncode == 0
    assert lies == [0, 4 * MiB]
    assert len(observer.warnings) == 1 and "the holes were none" in observer.warnings[0]
    stored, _ = peek(path)
    assert stored is not None and stored.state is State.FINISHED
    assert not decoded(stored, path).trusting
    assert [one.kind for one in stored.happened] == ["began", "began anew", "resumed", "finished"]
