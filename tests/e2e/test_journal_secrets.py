"""What a journal keeps is no secret, whichever command keeps it; and who began the copy still has them."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from mpconv.coordination.observer import Observer
from mpconv.jobs.context import JobContext
from mpconv.jobs.copy import journaled, redeploy
from mpconv.jobs.copy.deploy import Deployment
from mpconv.jobs.copy.manifest import decoded
from mpconv.jobs.copy.targets import Outcome
from mpconv.journal.file import peek
from mpconv.model.errors import StatusWithdrawn
from mpconv.model.extent import Extent, Kind
from mpconv.model.place import Place, Trust
from mpconv.options.copy import Options
from mpconv.workers.launch.local import LocalWorkers
from tests.conftest import identical, make_image, mpconv
from tests.support.servers import IscsiServer

MiB = 1 << 20
PASSWORD = "secretword123"


def kept_in(path: Path) -> bytes:
    """All bytes of a journal, or of all files of a fan-out's."""
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    return b"".join(one.read_bytes() for one in files)


@pytest.mark.parametrize("command", ["convert", "deploy", "fanout"])
def test_keys_are_never_kept(tmp_path: Path, command: str):
    assert mpconv("keygen", "KEY", cwd=tmp_path).returncode == 0
    make_image(tmp_path / "a.raw", MiB)
    words = ["--listen", "tcp://127.0.0.1:0", "--key-file", "KEY", "--shared-files", "--journal", "j.db"]
    if command == "fanout":
        (tmp_path / "plan.toml").write_text('[[job]]\nname = "one"\nsource = "a.raw"\ntarget = "b.raw"\n')
        words.append("plan.toml")
    else:
        words += ["a.raw", "b.raw"]
    done = mpconv(command, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")
    kept = kept_in(tmp_path / "j.db")
    secrets = [line.split()[1] for line in (tmp_path / "KEY").read_text().splitlines()[1:]]
    assert len(secrets) == 4
    for secret in secrets:
        assert secret.encode() not in kept
    if command != "fanout":
        stored, _ = peek(str(tmp_path / "j.db"))
        assert stored is not None
        assert decoded(stored, "j.db").options.listening is None  # a resumed one listens only where that is said


class Lying(Observer):
    """Hears the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("command", ["convert", "deploy"])
def test_a_restart_in_place_knows_the_backing_file_s_password(tmp_path, monkeypatch, iscsi: IscsiServer, command):
    """The overlay names its base by a URL with a password, and is caught at a lie once the journal has begun."""
    iqn = iscsi.add_target(f"iqn.2026-11.org.mpconv:restart-{command}", chap=(command, PASSWORD))
    base, overlay = tmp_path / "base.img", tmp_path / "over.qcow2"
    make_image(base, 8 * MiB)
    url = iscsi.url(iqn, iscsi.add_lun(iqn, base)).replace("//", f"//{command}%{PASSWORD}@")
    made = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", url, str(overlay), str(8 * MiB)]
    subprocess.run(made, check=True)

    from mpconv.formats.qcow2.image import Qcow2Image  # noqa: PLC0415

    real, lies = Qcow2Image.block_status, []

    async def block_status(self: Qcow2Image, offset: int, length: int) -> list[Extent]:
        lies.append(offset)
        if len(lies) == 1:
            return [Extent(0, 4 * MiB, Kind.ZERO)]
        if len(lies) == 2:
            raise StatusWithdrawn("the holes were none", operation="reading block status", image="over", offset=offset)
        return await real(self, offset, length)

    monkeypatch.setattr(Qcow2Image, "block_status", block_status)
    directory = url.rpartition("/")[0]
    options = Options(workers=1, trust=Trust(backing=[directory]))
    source, target, path = Place(url=str(overlay)), Place(url=str(tmp_path / "b.raw")), str(tmp_path / "j.db")
    workers, observer = LocalWorkers(["mpconv.transports.file.store"]), Lying()
    if command == "convert":
        asyncio.run(journaled.convert([source], target, options, JobContext(workers, observer), path))
    else:
        deployment = Deployment(source, [Outcome(target)])
        asyncio.run(redeploy.deploy(deployment, options, JobContext(workers, observer), path))
        assert deployment.outcomes[0].error is None
    assert any("reads everything" in warning for warning in observer.warnings)
    assert identical(base, tmp_path / "b.raw")
    assert PASSWORD.encode() not in kept_in(Path(path))
