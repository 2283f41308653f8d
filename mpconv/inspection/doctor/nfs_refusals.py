"""Why an NFS URL cannot be opened, and what to do, from all that was asked. Pure, but for the user's number."""

from __future__ import annotations

import os
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from mpconv.inspection.doctor.findings import Examination
from mpconv.inspection.doctor.rpc import Export
from mpconv.model.errors import Absent, Denied, MpconvError, Unreachable
from mpconv.transports.nfs.url import Address

_SHOWN = 8
"""Exports that are listed."""


class Asked(Struct):
    """What server and portmapper told. `versions`: none when that is not known, for `why`; `exports`: None when nobody
    tells; `low_ports`: whether this process may use ports below 1024; `writes_4`: whether libnfs can write by NFSv4;
    `root_mounts`: whether the export itself can be mounted, where the directory in it cannot.
    """

    port: int
    mount_port: int
    versions: list[str]
    why: str
    low_ports: bool
    writes_4: bool = True
    exports: list[Export] | None = None
    root_mounts: bool = False


def wrong_version(found: Examination, address: Address, asked: Asked, wanted: str) -> bool:
    """Whether the server does not offer the version that the URL asks for; then it is a problem."""
    offered = {version.partition(".")[0] for version in asked.versions}
    if not offered or wanted in offered:
        return False
    listed = ", ".join(asked.versions)
    if wanted == "4":
        fix = (
            "take version=4 out of the URL (ports are then asked of the portmapper, or named as nfsport and mountport)"
        )
    else:
        reading = "" if asked.writes_4 else " to read it (the installed libnfs cannot write by NFSv4)"
        fix = f"write '{with_parameters(address, version='4')}'{reading}, or allow NFSv3 on the server"
    found.problem("nfs-version", f"the URL asks for NFSv{wanted}, and the server offers {listed} only", fix)
    return True


def with_parameters(address: Address, **parameters: str) -> str:
    """The URL with these, in place of what it has of them."""
    return replace(address, parameters=address.parameters | parameters).url


def missing(found: Examination, address: Address) -> None:
    """There is no such file in a directory that could be mounted."""
    name = address.file
    found.fact("mounted", address.directory, address.directory)
    if not name:
        found.problem("not-a-file", "the URL names a directory", "write the image's name behind it")
        return
    what = f"No such file: there is no '{name}' in {address.directory}"
    found.problem("missing", what, "see to the name; as a target it need not be there: convert makes it")


def refused(found: Examination, address: Address, asked: Asked, error: MpconvError | TimeoutError) -> None:
    """Everything else that keeps the file from being opened."""
    if isinstance(error, TimeoutError):
        silent(found)
        return
    reason = error.reason or error.why
    if isinstance(error, Denied):
        found.problem(
            "permission", f"{reason}: the server does not let user {user(address)} read the file", _rights(address)
        )
    elif isinstance(error, Absent):
        _not_exported(found, address, asked, reason)
    elif isinstance(error, Unreachable) and (asked.why or not asked.low_ports):
        _ports(found, asked, reason)
    elif reason == "Is a directory":
        found.problem("not-a-file", "the URL names a directory", "write the image's name behind it")
    else:
        found.problem("refused", reason, "see the server's log for this request")


def silent(found: Examination) -> None:
    """Nothing comes back."""
    what = "the server takes connections and does not answer"
    found.problem("silent", what, "see whether its NFS service hangs; a restart of it may help")


def user(address: Address) -> str:
    """As whom the server is asked."""
    return address.parameters.get("uid") or str(os.getuid())


def _rights(address: Address) -> str:
    again = with_parameters(address, uid="N", gid="N")
    who = "" if user(address) != "0" else "export it with no_root_squash, or "
    return f"{who}ask as the file's owner, '{again}'; or give others the right on the server (chmod)"


def _ports(found: Examination, asked: Asked, reason: str) -> None:
    if asked.low_ports:
        what = f"the server refuses requests: {asked.why or reason}"
        found.problem("refused", what, "open the export to this host and to sec=sys, in the server's configuration")
    else:
        what = "the server refuses requests: it may serve only ports below 1024, and this process may use none of them"
        found.problem("ports", what, _LOW_PORTS)


_LOW_PORTS = (
    "run as root (or give python CAP_NET_BIND_SERVICE), or export with 'insecure' (ganesha: PrivilegedPort = false)"
)


def _not_exported(found: Examination, address: Address, asked: Asked, reason: str) -> None:
    """The mount was refused, or there is no such directory: the server's list of exports tells which."""
    directory = address.directory
    export = around(asked, directory)
    if asked.exports is None:
        code = "missing-directory" if reason.startswith("No such file") else "export"
        found.problem(code, f"{directory} cannot be mounted: {reason}", f"see to the name, or {_open_it(directory)}")
    elif export is None:
        what = f"{directory} is not exported: the server exports {_listed([one.path for one in asked.exports])}"
        found.problem("export", what, f"use one of these, or {_open_it(directory)}")
    elif asked.root_mounts:
        what = f"there is no directory {directory}, as far as this user may look into the export {export.path}"
        found.problem("missing-directory", what, "see to the name, and to the rights of the directories above it")
    else:
        whom = f", which is for {_listed(export.clients)}," if export.clients else ""
        if asked.low_ports:
            found.problem("export", f"the export {export.path}{whom} refuses this host", _open_it(export.path))
        else:
            what = f"the export {export.path}{whom} refuses this host, or ports over 1023: this process has no others"
            found.problem("export", what, f"{_LOW_PORTS}; or {_open_it(export.path)}")


def around(asked: Asked, directory: str) -> Export | None:
    """The export that the directory lies in, as far as the server tells."""
    fitting = [export for export in asked.exports or () if covers(export.path, directory)]
    return max(fitting, key=lambda one: len(one.path), default=None)


def covers(export: str, directory: str) -> bool:
    """Whether the directory lies in the export."""
    return directory == export or directory.startswith(export.rstrip("/") + "/")


def _open_it(directory: str) -> str:
    return f"export it to this host (Linux: '{directory} HOST(rw,no_root_squash)' in /etc/exports, then exportfs -ra)"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return (", ".join(names[:_SHOWN]) or "nothing") + (f" and {more} more" if more > 0 else "")
