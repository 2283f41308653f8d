"""Real servers, on loopback unless told otherwise: nfs-ganesha and tgt, on free ports, ended by pid."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_START_SECONDS = 30.0
_STOP_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1
LOOPBACK = "127.0.0.1"


class ServerError(Exception):
    """A server could not be started or told what to do."""


_given: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listening(port: int, address: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def binary(name: str, package: str) -> str:
    """Where the program is; ServerError with the package to install."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise ServerError(f"{name} is not installed: apt-get install {package}")
    return found


class Server:
    """A child process with a log. `daemon`: it outlives this process."""

    def __init__(self, directory: Path, *, daemon: bool = False) -> None:
        self.directory = directory
        self.daemon = daemon
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self.process is not None
        return self.process.pid

    def _launch(self, command: list[str], ready: Callable[[], bool]) -> None:
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=None if self.daemon else _die_with_parent,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = "\n".join(
                    text for path in self.directory.glob("*.log") for text in path.read_text().splitlines()[-8:]
                )
                raise ServerError(f"{command[0]} did not start:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server; SIGKILL when it does not end by itself."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __exit__(self, *_: object) -> None:
        self.stop()


class RpcBind(Server):
    """rpcbind, which tells qemu-img the NFS server's ports."""

    def start(self) -> None:
        """Start and wait until it answers."""
        Path("/run/rpcbind").mkdir(exist_ok=True)
        self._launch([binary("rpcbind", "rpcbind"), "-f", "-w"], lambda: _listening(111))


_GANESHA = """
NFS_CORE_PARAM {{ Protocols = {protocols}; NFS_Port = {nfs}; MNT_Port = {mount}; Bind_addr = {address};
  Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; Minor_Versions = {minor_versions}; RecoveryRoot = "{state}"; }}
EXPORT {{ Export_Id = 1; Path = "{path}"; Pseudo = "{path}"; Access_Type = RW; Squash = No_Root_Squash;
  SecType = sys; Protocols = {protocols}; Transports = TCP; FSAL {{ Name = VFS; }} }}
"""
_EXTRA_EXPORT = """
EXPORT {{ Export_Id = {number}; Path = "{path}"; Pseudo = "{pseudo}"; {settings}
  SecType = sys; Protocols = 3,4; Transports = TCP; FSAL {{ Name = VFS; }} }}
"""
_UNFRIENDLY = {
    "readonly": "Access_Type = RO; Squash = No_Root_Squash;",
    "squashed": "Access_Type = RW; Squash = Root_Squash;",
    "privileged": "Access_Type = RW; Squash = No_Root_Squash; PrivilegedPort = true;",
}


class NfsServer(Server):
    """nfs-ganesha exporting `export` (default: a folder of `directory`) over NFSv3 and v4.

    `unfriendly`: it also exports `unfriendly_export(kind)`, for kind "readonly", "squashed" (root is nobody there) and
    "privileged" (only ports below 1024 are served). `protocols` and `minor_versions`: all it offers, in its own words.
    `inner`: folders of the export that are exports themselves.
    """

    def __init__(
        self,
        directory: Path,
        export: Path | None = None,
        *,
        daemon: bool = False,
        unfriendly: bool = False,
        address: str = LOOPBACK,
        protocols: str = "3,4",
        minor_versions: str = "0,1,2",
        inner: tuple[str, ...] = (),
    ) -> None:
        super().__init__(directory, daemon=daemon)
        self.address = address
        self._offers = {"protocols": protocols, "minor_versions": minor_versions}
        self.export = (export or directory / "export").resolve()
        self.export.mkdir(parents=True, exist_ok=True)
        self._unfriendly = unfriendly
        self._inner = inner
        self.rpcbind: RpcBind | None = None
        self.port, self.mount_port = free_port(), free_port()

    def __enter__(self) -> NfsServer:
        self.start()
        return self

    def start(self) -> None:
        """Start and wait until it answers. It registers with rpcbind, which is started when none runs."""
        if not _listening(111):
            self.rpcbind = RpcBind(self.directory / "rpcbind", daemon=self.daemon)
            self.rpcbind.start()
        config = self.directory / "ganesha.conf"
        text = _GANESHA.format(
            address=self.address,
            nfs=self.port,
            mount=self.mount_port,
            path=self.export,
            state=self.directory,
            **self._offers,
        )
        for number, (kind, settings) in enumerate(_UNFRIENDLY.items() if self._unfriendly else (), 2):
            path = self.unfriendly_export(kind)
            path.mkdir(parents=True, exist_ok=True)
            text += _EXTRA_EXPORT.format(number=number, path=path, pseudo=path, settings=settings)
        for number, name in enumerate(self._inner, 10):
            (self.export / name).mkdir(exist_ok=True)
            settings = "Access_Type = RW; Squash = No_Root_Squash;"
            export = {"path": self.export / name, "pseudo": self.inner_pseudo(name)}
            text += _EXTRA_EXPORT.format(number=number, settings=settings, **export)
        config.write_text(text)
        command = [binary("ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs"), "-F", "-f", str(config)]
        command += ["-L", str(self.directory / "ganesha.log"), "-p", str(self.directory / "ganesha.pid")]
        ports = [self.port, self.mount_port] if "3" in self._offers["protocols"] else [self.port]
        self._launch(command, lambda: all(_listening(port, self.address) for port in ports))

    def stop(self) -> None:
        """Asked to end it would take longer than the usual wait, and nothing of it is kept."""
        self.kill()
        if self.rpcbind is not None:
            self.rpcbind.stop()
            self.rpcbind = None

    def path(self, name: str) -> Path:
        """The file on the server's own disk."""
        return self.export / name

    def unfriendly_export(self, kind: str) -> Path:
        """The folder behind the export of that kind."""
        return self.directory.resolve() / kind

    def inner_pseudo(self, name: str) -> Path:
        """What NFSv4 calls the inner export, which it knows as a folder of the outer one too."""
        return Path("/inner") / name

    def url(self, name: str, export: Path | None = None) -> str:
        """For mpconv: needs no rpcbind. `export`: another one than the usual."""
        return f"nfs://{self.address}{export or self.export}/{name}?nfsport={self.port}&mountport={self.mount_port}"

    def qemu_url(self, name: str) -> str:
        """For qemu-img, which knows no ports in the URL and asks rpcbind."""
        return f"nfs://{self.address}{self.export}/{name}"


_CONTROL = Path("/var/run/tgtd/socket.0")


class IscsiServer(Server):
    """tgtd with targets and LUNs backed by files."""

    def __init__(self, directory: Path, *, daemon: bool = False, address: str = LOOPBACK) -> None:
        super().__init__(directory, daemon=daemon)
        self.address = address
        self.port = free_port()
        self._control = next(
            number for number in range(1000, 9000) if not _CONTROL.with_name(f"socket.{number}").exists()
        )
        self._targets: list[str] = []
        self._told: list[tuple[str, ...]] = []
        self._luns: dict[str, int] = {}

    def __enter__(self) -> IscsiServer:
        self.start()
        return self

    def start(self) -> None:
        """Start and wait until it answers."""
        _CONTROL.parent.mkdir(parents=True, exist_ok=True)
        command = [binary("tgtd", "tgt"), "-f", "-C", str(self._control)]
        command += ["--iscsi", f"portal={self.address}:{self.port}"]
        self._launch(command, lambda: _listening(self.port, self.address))

    def stop(self) -> None:
        super().stop()
        for suffix in ("", ".lock"):
            _CONTROL.with_name(f"socket.{self._control}{suffix}").unlink(missing_ok=True)

    def restart(self, between: Callable[[], None] = lambda: None) -> None:
        """Kill it, and start one that has the same targets and LUNs. `between`: what is done while it is away."""
        self.kill()
        for suffix in ("", ".lock"):
            _CONTROL.with_name(f"socket.{self._control}{suffix}").unlink(missing_ok=True)
        between()
        self.start()
        for arguments in self._told:
            self._run(*arguments)

    def connections(self, iqn: str) -> int:
        """Connections of initiators that the target knows."""
        tid = str(self._targets.index(iqn) + 1)
        return self._run("--op", "show", "--mode", "conn", "--tid", tid).count("Connection:")

    def _admin(self, *arguments: str) -> None:
        self._run(*arguments)
        self._told.append(arguments)

    def _run(self, *arguments: str) -> str:
        command = [binary("tgtadm", "tgt"), "-C", str(self._control), "--lld", "iscsi", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def add_target(self, iqn: str, chap: tuple[str, str] | None = None) -> str:
        """A target open to every initiator, with CHAP (user, password) when given."""
        self._targets.append(iqn)
        tid = str(len(self._targets))
        self._admin("--op", "new", "--mode", "target", "--tid", tid, "-T", iqn)
        if chap is not None:
            user, password = chap
            self._admin("--op", "new", "--mode", "account", "--user", user, "--password", password)
            self._admin("--op", "bind", "--mode", "account", "--tid", tid, "--user", user)
        self._admin("--op", "bind", "--mode", "target", "--tid", tid, "-I", "ALL")
        self._luns[iqn] = 0
        return iqn

    def has_target(self, iqn: str) -> bool:
        """Whether it was added."""
        return iqn in self._targets

    def add_lun(
        self, iqn: str, backing: Path, *, block_size: int = 512, thin: bool = True, readonly: bool = False
    ) -> int:
        """Its number."""
        self._luns[iqn] += 1
        lun, tid = str(self._luns[iqn]), str(self._targets.index(iqn) + 1)
        where = ["--mode", "logicalunit", "--tid", tid, "--lun", lun]
        self._admin("--op", "new", *where, "-b", str(backing), "--blocksize", str(block_size))
        if thin:
            self._admin("--op", "update", *where, "--params", "thin_provisioning=1")
        if readonly:
            self._admin("--op", "update", *where, "--params", "readonly=1")
        return int(lun)

    def url(self, iqn: str, lun: int) -> str:
        """For mpconv and qemu-img."""
        return f"iscsi://{self.address}:{self.port}/{iqn}/{lun}"


def save(directory: Path, facts: dict[str, Any]) -> None:
    """What `scripts/lab` needs to know to stop and describe the servers."""
    (directory / "lab.json").write_text(json.dumps(facts, indent=2) + "\n")
