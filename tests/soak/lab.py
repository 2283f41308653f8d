"""Where the images of the soak lie: files, a real NFS server, LUNs of a real target; behind relays if need be."""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.soak.cases import FILE, LUN, LUN_SIZES, NFS, SOURCE, Case, MiB
from tests.support.relay import Relay
from tests.support.servers import IscsiServer, NfsServer

IQN = "iqn.2026-11.org.mpconv:soak"
_SOURCE_LUNS = (*LUN_SIZES, 40 * MiB)
_TARGET_LUN = 96 * MiB
_TEXT = b"".join(b"%07d\n" % number for number in range(1 << 17))
_numbers = itertools.count(1)


class Lab:
    """Servers of its own for one case at a time. LUNs are made once: tgtd never opens a file again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.nfs = NfsServer(directory / "nfs")
        self.iscsi = IscsiServer(directory / "iscsi")
        self.luns: dict[int, tuple[int, Path]] = {}

    def __enter__(self) -> Lab:
        self.nfs.start()
        self.iscsi.start()
        self.iscsi.add_target(IQN)
        for size in (*_SOURCE_LUNS, _TARGET_LUN):
            backing = self.directory / f"lun-{size}"
            with backing.open("wb") as file:
                file.truncate(size)
            self.luns[size] = (self.iscsi.add_lun(IQN, backing), backing)
        return self

    def __exit__(self, *_: object) -> None:
        self.iscsi.stop()
        self.nfs.stop()


class Side:
    """Source or target of one case: where its bytes are, its name for the command line, and its relay."""

    def __init__(self, case: Case, side: str, lab: Lab, folder: Path, stack: contextlib.ExitStack) -> None:
        self.lab, self.side = lab, side
        self.place = case.source_place if side == SOURCE else case.target_place
        self.format = case.source_format if side == SOURCE else case.target_format
        self.relay: Relay | None = None
        server = {NFS: lab.nfs, LUN: lab.iscsi, FILE: None}[self.place]
        if server is not None and case.relayed(side):
            self.relay = Relay("127.0.0.1", server.port)
            stack.callback(self.relay.close)
        name = f"{side}-{next(_numbers)}.{self.format}"
        if self.place == LUN:
            fits = case.size if self.format == "raw" else case.size + MiB  # a qcow2 image has its tables besides
            size = next(size for size in _SOURCE_LUNS if size >= fits) if side == SOURCE else _TARGET_LUN
            number, self.path = lab.luns[size]
            self.name = self._through(lab.iscsi.url(IQN, number), lab.iscsi.port, ":{}/")
        elif self.place == NFS:
            self.path = lab.nfs.path(name)
            self.name = self._through(lab.nfs.url(name), lab.nfs.port, "nfsport={}&")
            stack.callback(lambda: self.path.unlink(missing_ok=True))
        else:
            self.path = folder / name
            self.name = str(self.path)

    def _through(self, url: str, port: int, form: str) -> str:
        return url if self.relay is None else url.replace(form.format(port), form.format(self.relay.port))

    def restart(self, seconds: float) -> None:
        """The server dies, and is there again after so long."""
        if self.place == NFS:
            self.lab.nfs.kill()
            time.sleep(seconds)
            self.lab.nfs.start()
        else:
            self.lab.iscsi.restart(lambda: time.sleep(seconds))

    def put(self, raw: Path, options: str = "") -> None:
        """Make the image of these bytes there; `options`: of a qcow2 image, for -o."""
        made = raw
        if self.format == "qcow2":
            made = raw.with_suffix(".qcow2")
            _tool("convert", "-O", "qcow2", *(["-o", options] if options else []), "-f", "raw", str(raw), str(made))
        if self.place == LUN:
            size = self.path.stat().st_size
            with self.path.open("r+b") as file:
                file.truncate(0)
                file.truncate(size)
                file.write(made.read_bytes())
        else:
            _tool("convert", "-f", "raw", "-O", "raw", str(made), str(self.path))

    def soil(self, case: Case, folder: Path) -> None:
        """What lies there before: an image full of other bytes where there is one, on a LUN always old bytes."""
        if case.old:
            other = folder / "old.raw"
            other.write_bytes(b"\xa5" * case.size)
            self.put(other, case.target_options)
        elif self.place == LUN:
            with self.path.open("r+b") as file:
                file.write(b"\xa5" * case.size)

    def image(self, size: int) -> str:
        """For `qemu-img --image-opts`; what lies behind a raw image on a LUN is no part of it."""
        window = f",size={size}" if self.format == "raw" else ""
        return f"driver={self.format}{window},file.driver=file,file.filename={self.path}"


def _tool(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


def write_pieces(case: Case, path: Path) -> None:
    """The guest's bytes: a raw file with holes."""
    chance = random.Random(f"{case.seed}/{case.number}/bytes")
    with path.open("wb") as file:
        file.truncate(case.size)
        at = 0
        for kind, length in case.pieces:
            if kind != "hole":
                file.seek(at)
                start = chance.randrange(1 << 17)
                text = (_TEXT * (2 + length // len(_TEXT)))[start : start + length] if kind == "text" else b""
                file.write(chance.randbytes(length) if kind == "noise" else text or bytes(length))
            at += length


@contextlib.contextmanager
def labs(directory: Path, count: int) -> Iterator[list[Lab]]:
    """So many, started one after the other."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Lab(directory / f"lab-{number}")) for number in range(count)]
